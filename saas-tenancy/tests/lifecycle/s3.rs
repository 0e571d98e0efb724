//! A real S3-compatible server over HTTP: `s3s-fs`, which keeps objects in a folder and checks every signature.
//!
//! `./dev test` installs it. It cannot outlive this process: a small shell script holds it and ends it when the pipe from
//! here closes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService},
};

use crate::targets::Folder;

pub(crate) const BUCKET: &str = "exports";
const ACCESS_KEY: &str = "access-key";
const SECRET: &str = "secret-of-the-test";
const REMEDY: &str = "run the tests by `./dev test`, which installs s3s-fs, or put it on the PATH";
const WATCHDOG: &str = "
    trap '' HUP INT TERM
    \"$1\" --host 127.0.0.1 --port \"$2\" --access-key \"$3\" --secret-key \"$4\" \"$5\" </dev/null & server=$!
    while read -r _; do :; done
    kill -KILL $server 2>/dev/null";
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running server with one bucket, until dropped.
pub(crate) struct S3 {
    pub(crate) address: SocketAddr,
    watchdog: Child,
    lifeline: Option<ChildStdin>,
    folder: Folder,
}

impl S3 {
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        std::fs::create_dir_all(folder.path().join(BUCKET)).unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "saas-test-s3"])
            .arg(program().unwrap_or_else(|| panic!("{REMEDY}")))
            .args([&port.to_string(), ACCESS_KEY, SECRET])
            .arg(folder.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lifeline = watchdog.stdin.take();
        let server = Self { address, watchdog, lifeline, folder };
        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "s3s-fs does not answer");
            std::thread::sleep(Duration::from_millis(3));
        }
        server
    }

    /// A client of the bucket that never repeats a request.
    pub(crate) fn client(&self, address: SocketAddr) -> AmazonS3Builder {
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{address}"))
            .with_region("us-east-1")
            .with_bucket_name(BUCKET)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET)
            .with_http_connector(OneRequestPerConnection)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
    }

    pub(crate) fn store(&self) -> Arc<AmazonS3> {
        Arc::new(self.client(self.address).build().unwrap())
    }

    /// Every object, by its path.
    pub(crate) async fn listed(&self) -> Vec<String> {
        let objects: Vec<_> = self.store().list(None).try_collect().await.unwrap();
        let mut paths: Vec<String> = objects.into_iter().map(|object| object.location.to_string()).collect();
        paths.sort();
        paths
    }

    /// Parts of uploads that are neither complete nor given up.
    pub(crate) fn parts(&self) -> Vec<String> {
        let mut files = self.folder.files();
        files.retain(|file| !file.starts_with(BUCKET) && file.contains("part"));
        files
    }
}

/// HTTP/1.1 without pooling, retries and TLS, so that a lost answer is one request's.
#[derive(Debug)]
struct OneRequestPerConnection;

impl HttpConnector for OneRequestPerConnection {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Self))
    }
}

#[async_trait]
impl HttpService for OneRequestPerConnection {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let authority = request.uri().authority().unwrap().to_string();
        let stream = tokio::net::TcpStream::connect(&authority).await;
        let stream = stream.map_err(|error| HttpError::new(HttpErrorKind::Connect, error))?;
        let lost = |error: hyper::Error| HttpError::new(HttpErrorKind::Request, error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let connection = tokio::spawn(connection);
        *request.uri_mut() = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
        request.headers_mut().insert(http::header::HOST, authority.parse().unwrap());
        let (head, body) = sender.send_request(request).await.map_err(lost)?.into_parts();
        let body = body.collect().await.map_err(lost)?.to_bytes();
        connection.abort();
        Ok(HttpResponse::from_parts(head, body.into()))
    }
}

/// On the path, or where `./dev test` puts it: beside this program's `debug` folder.
fn program() -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    let tools = own.iter().flat_map(|own| own.ancestors()).map(|folder| folder.join("tools/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain(tools).map(|folder| folder.join("s3s-fs"));
    found.into_iter().find(|program| program.is_file())
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _: io::Result<_> = self.watchdog.wait();
    }
}
