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
    testing::{Cut, DevServer, Proxy, RedisServer, TestDatabase},
};
use sqlx::ConnectOptions as _;

use crate::{PATIENCE, PROCESSES, Tenants};

/// Something that fails in production.
pub(crate) trait Victim: Send {
    /// Kills it and, where that is not its own business, has it come back. Says what it was.
    fn kill(&mut self, scene: &mut Scene, server: &mut DevServer, random: &mut fastrand::Rng) -> String;
}

pub(crate) fn all() -> Vec<Box<dyn Victim>> {
    vec![
        Box::new(Database),
        Box::new(Worker),
        Box::new(ListenerConnection),
        Box::new(Connections),
        Box::new(Answers),
        Box::new(Redis),
        Box::new(RedisContents),
        Box::new(RedisConnections),
        Box::new(RedisAnswers),
    ]
}

/// The server, in the middle of whatever it does.
struct Database;

impl Victim for Database {
    fn kill(&mut self, _: &mut Scene, server: &mut DevServer, _: &mut fastrand::Rng) -> String {
        server.crash().unwrap();
        "database".to_owned()
    }
}

/// A process, by SIGKILL; another one takes its place.
struct Worker;

impl Victim for Worker {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> String {
        let which = random.usize(..PROCESSES);
        let place = &mut scene.places[which];
        if let Some(mut process) = place.process.take() {
            process.0.kill().unwrap();
            process.0.wait().unwrap();
            place.incarnation += 1;
            place.process = Some(scene.setting.start(which, place));
        }
        format!("process {which}")
    }
}

/// The connection on which a process hears of changes.
struct ListenerConnection;

impl Victim for ListenerConnection {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> String {
        format!("listener connection of {}", cut(scene, random, |place| &place.hearing))
    }
}

/// All connections over which a process asks.
struct Connections;

impl Victim for Connections {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> String {
        format!("connections of {}", cut(scene, random, |place| &place.asking))
    }
}

/// A connection at the moment at which an answer is due: what was asked is done, and nobody learns of it.
struct Answers;

impl Victim for Answers {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> String {
        format!("answer to {}", cut_instead_of_answer(scene, random, |place| &place.asking))
    }
}

/// Redis, with all that it holds; it comes back empty, at once or when the next is killed.
struct Redis;

impl Victim for Redis {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> String {
        if random.bool() {
            scene.redis.restart().unwrap();
            return "redis".to_owned();
        }
        scene.redis.kill();
        scene.is_redis_down = true;
        "redis for a while".to_owned()
    }
}

/// What Redis holds; it lives on.
struct RedisContents;

impl Victim for RedisContents {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, _: &mut fastrand::Rng) -> String {
        let client = redis::Client::open(scene.redis.url()).unwrap();
        redis::cmd("FLUSHALL").exec(&mut client.get_connection().unwrap()).unwrap();
        "contents of redis".to_owned()
    }
}

/// All connections of a process to Redis.
struct RedisConnections;

impl Victim for RedisConnections {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> String {
        format!("redis connections of {}", cut(scene, random, |place| &place.counting))
    }
}

/// The same, at the moment at which an answer is due.
struct RedisAnswers;

impl Victim for RedisAnswers {
    fn kill(&mut self, scene: &mut Scene, _: &mut DevServer, random: &mut fastrand::Rng) -> String {
        format!("redis answer to {}", cut_instead_of_answer(scene, random, |place| &place.counting))
    }
}

fn cut(scene: &Scene, random: &mut fastrand::Rng, road: impl Fn(&Place) -> &Proxy) -> String {
    let (which, how) = (random.usize(..PROCESSES), if random.bool() { Cut::Reset } else { Cut::Close });
    road(&scene.places[which]).cut(how);
    format!("{which} ({how:?})")
}

fn cut_instead_of_answer(scene: &Scene, random: &mut fastrand::Rng, road: impl Fn(&Place) -> &Proxy) -> usize {
    let which = random.usize(..PROCESSES);
    road(&scene.places[which]).cut_instead_of_answer(random.u64(..6));
    which
}

/// A place for a process, and its roads to the database and to Redis.
struct Place {
    process: Option<Process>,
    incarnation: usize,
    is_done: bool,
    asking: Proxy,
    hearing: Proxy,
    counting: Proxy,
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
            .env("KILL_REDIS", format!("redis://{}", place.counting.address()))
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
    redis: RedisServer,
    is_redis_down: bool,
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
        let redis = RedisServer::start().unwrap();
        let road = || Proxy::start((host.as_str(), port)).unwrap();
        let mut scene = Self { places: Vec::new(), setting, receiver, redis, is_redis_down: false };
        for worker in 0..PROCESSES {
            let counting = Proxy::start(("127.0.0.1", scene.redis.port())).unwrap();
            let (asking, hearing) = (road(), road());
            let mut place = Place { process: None, incarnation: 0, is_done: false, asking, hearing, counting };
            place.process = Some(scene.setting.start(worker, &place));
            scene.places.push(place);
        }
        scene
    }

    pub(crate) fn is_at_work(&self) -> bool {
        self.places.iter().any(|place| !place.is_done)
    }

    /// Has what was killed for a while come back; returns where the tier is.
    pub(crate) fn recover(&mut self) -> String {
        if std::mem::take(&mut self.is_redis_down) {
            self.redis.restart().unwrap();
        }
        self.redis.url()
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
