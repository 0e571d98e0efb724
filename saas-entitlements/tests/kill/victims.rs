//! What can be killed. Whatever the application comes to stand on is added to [`all`].

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use saas_core::{
    TenantContext,
    testing::{Cut, DevServer, Proxy, TestDatabase},
};
use sqlx::ConnectOptions as _;

use crate::{PATIENCE, PROCESSES, Tenants};

/// Something that fails in production.
pub(crate) trait Victim: Send {
    /// Kills it and, where that is not its own business, has it come back. Says what it was.
    fn kill(&mut self, scene: &mut Scene, server: &mut DevServer, random: &mut fastrand::Rng) -> &'static str;
}

pub(crate) fn all() -> Vec<Box<dyn Victim>> {
    vec![Box::new(Database), Box::new(Worker), Box::new(ListenerConnection), Box::new(Connections), Box::new(Answers)]
}

/// The server, in the middle of whatever it does.
struct Database;

impl Victim for Database {
    fn kill(&mut self, _: &mut Scene, server: &mut DevServer, _: &mut fastrand::Rng) -> &'static str {
        server.crash().unwrap();
        "database"
    }
}

/// A process, by SIGKILL; another one takes its place.
struct Worker;

impl Victim for Worker {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> &'static str {
        let which = random.usize(..PROCESSES);
        let place = &mut scene.places[which];
        if let Some(mut process) = place.process.take() {
            process.0.kill().unwrap();
            process.0.wait().unwrap();
            place.incarnation += 1;
            place.process = Some(scene.setting.start(which, place));
        }
        "process"
    }
}

/// The connection on which a process hears of changes.
struct ListenerConnection;

impl Victim for ListenerConnection {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> &'static str {
        let how = if random.bool() { Cut::Reset } else { Cut::Close };
        scene.places[random.usize(..PROCESSES)].hearing.cut(how);
        "listener connection"
    }
}

/// All connections over which a process asks.
struct Connections;

impl Victim for Connections {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> &'static str {
        let how = if random.bool() { Cut::Reset } else { Cut::Close };
        scene.places[random.usize(..PROCESSES)].asking.cut(how);
        "connections"
    }
}

/// A connection at the moment at which an answer is due: what was asked is done, and nobody learns of it.
struct Answers;

impl Victim for Answers {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> &'static str {
        scene.places[random.usize(..PROCESSES)].asking.cut_instead_of_answer(random.u64(..6));
        "answer"
    }
}

/// A place for a process, and its roads to the database.
struct Place {
    process: Option<Process>,
    incarnation: usize,
    is_done: bool,
    asking: Proxy,
    hearing: Proxy,
}

/// Does not outlive the supervisor, whatever becomes of it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A line of a process, or its end.
struct Heard {
    worker: usize,
    incarnation: usize,
    line: Option<String>,
}

/// What every process is told.
struct Setting {
    folder: PathBuf,
    busy: String,
    asked: String,
    logins: [sqlx::postgres::PgConnectOptions; 2],
    sender: Sender<Heard>,
}

impl Setting {
    fn start(&self, worker: usize, place: &Place) -> Process {
        let through = |login: usize, proxy: &Proxy| {
            let login = self.logins[login].clone().host("127.0.0.1").port(proxy.address().port());
            login.to_url_lossy().to_string()
        };
        let mut child = Command::new(env::current_exe().unwrap())
            .env("KILL_WORKER", worker.to_string())
            .env("KILL_FOLDER", &self.folder)
            .env("KILL_BUSY", &self.busy)
            .env("KILL_ASKED", &self.asked)
            .env("KILL_APP", through(0, &place.asking))
            .env("KILL_SYSTEM", through(1, &place.asking))
            .env("KILL_LISTEN", through(0, &place.hearing))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, incarnation) = (self.sender.clone(), place.incarnation);
        thread::spawn(move || {
            let say = |line| drop(sender.send(Heard { worker, incarnation, line }));
            output.lines().map_while(Result::ok).for_each(|line| say(Some(line)));
            say(None);
        });
        Process(child)
    }
}

/// The processes at work.
pub(crate) struct Scene {
    places: Vec<Place>,
    setting: Setting,
    receiver: Receiver<Heard>,
}

impl Scene {
    pub(crate) fn open(database: &TestDatabase, folder: &Path, tenants: &Tenants) -> Self {
        let (host, port) = database.address();
        let (sender, receiver) = channel();
        let setting = Setting {
            folder: folder.to_owned(),
            busy: tenants.busy.tenant().to_string(),
            asked: tenants.asked.tenant().to_string(),
            logins: [database.options("saas_app"), database.options("saas_system")],
            sender,
        };
        let road = || Proxy::start((host.as_str(), port)).unwrap();
        let mut scene = Self { places: Vec::new(), setting, receiver };
        for worker in 0..PROCESSES {
            let mut place = Place { process: None, incarnation: 0, is_done: false, asking: road(), hearing: road() };
            place.process = Some(scene.setting.start(worker, &place));
            scene.places.push(place);
        }
        scene
    }

    pub(crate) fn is_at_work(&self) -> bool {
        self.places.iter().any(|place| !place.is_done)
    }

    /// Waits for a process to say something: how many seconds of traffic were served by that.
    pub(crate) fn hear(&mut self) -> u64 {
        let heard = self.receiver.recv_timeout(PATIENCE).unwrap();
        let place = &mut self.places[heard.worker];
        match heard.line.as_deref() {
            Some("done") => {
                place.is_done = true;
                0
            }
            Some("second") => 1,
            Some(other) => panic!("worker {} says {other:?}", heard.worker),
            None => {
                let was_killed = heard.incarnation < place.incarnation;
                assert!(was_killed || place.is_done, "worker {} ended by itself", heard.worker);
                0
            }
        }
    }
}
