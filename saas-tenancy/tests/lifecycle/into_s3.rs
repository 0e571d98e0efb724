//! Exports into a real S3-compatible server: what arrives, what is refused, and that half an export is never presented.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::Arc,
};

use futures_util::poll;
use object_store::{ObjectStoreExt as _, path::Path};
use saas_core::{ErrorKind, SCHEMA as CORE, SystemPool, TenantContext, TenantPool, db, testing::Proxy};
use saas_tenancy::{
    SCHEMA,
    export::{ExportTarget as _, Exports, FileFormat, Manifest, ObjectTarget},
};
use sha2::{Digest as _, Sha256};

use crate::{s3::S3, stage::Stage};

fn into(store: object_store::aws::AmazonS3Builder) -> ObjectTarget {
    ObjectTarget::new(Arc::new(store.build().unwrap()), Path::from("of"))
}

/// What is listed is complete exports and nothing else.
async fn complete(s3: &S3) -> Vec<Manifest> {
    let listed = s3.listed().await;
    let (manifests, known) = presented(s3, &listed).await;
    assert_eq!(known, listed.into_iter().collect(), "nothing but what the manifests name");
    manifests
}

/// The exports that name themselves: every file that a manifest names is there, with its digest.
async fn presented(s3: &S3, listed: &[String]) -> (Vec<Manifest>, BTreeSet<String>) {
    let (mut manifests, mut known) = (Vec::new(), BTreeSet::new());
    for path in listed.iter().filter(|path| path.ends_with("manifest.json")) {
        let bytes = s3.store().get(&Path::from(path.as_str())).await.unwrap().bytes().await.unwrap();
        let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
        let folder = path.strip_suffix("manifest.json").unwrap();
        known.insert(path.clone());
        for file in manifest.tables.iter().flat_map(|table| &table.files) {
            let path = format!("{folder}{}", file.path);
            let contents = s3.store().get(&Path::from(path.as_str())).await.unwrap().bytes().await.unwrap();
            let digest: String = Sha256::digest(&contents).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((contents.len() as u64, digest), (file.bytes, file.sha256.clone()), "{path}");
            known.insert(path);
        }
        manifests.push(manifest);
    }
    (manifests, known)
}

async fn fill(stage: &Stage, rows: i32) {
    let mut tx = stage.begin(&stage.a).await;
    let insert = "insert into public.project (tenant_id, name)
                  select $1, n || repeat('x', 1000) from generate_series(1, $2) n";
    sqlx::query(insert).bind(stage.a.tenant().as_uuid()).bind(rows).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn an_export_goes_to_s3_in_signed_requests_and_many_parts() {
    let (stage, s3) = (Stage::start().await, S3::start());
    fill(&stage, 12_000).await;
    let done = stage.exports.run(&stage.a, &into(s3.client(s3.address)), &mut |_| ()).await.unwrap();
    assert_eq!(complete(&s3).await, std::slice::from_ref(&done.manifest));
    let project = done.manifest.tables.iter().find(|table| table.name == "public.project").unwrap();
    let lines = project.files.iter().find(|file| file.format == FileFormat::JsonLines).unwrap();
    assert!(lines.bytes > 2 * 5 * 1024 * 1024, "more than two parts: {} bytes", lines.bytes);
    assert_eq!(s3.parts(), Vec::<String>::new());
    // Removed, it is gone, and removing it again is as good.
    let target = into(s3.client(s3.address));
    for _ in 0..2 {
        target.remove(stage.acme.tenant, done.manifest.export).await.unwrap();
        assert_eq!(s3.listed().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_store_is_said_with_its_remedy() {
    let (stage, s3) = (Stage::start().await, S3::start());
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // `s3s-fs` makes a bucket that is missing; this is what S3 says.
    let missing = TcpListener::bind("127.0.0.1:0").unwrap();
    let no_such_bucket = missing.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = missing.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        let body = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
        write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    });
    let client = || s3.client(s3.address);
    for (store, code, kind, remedy) in [
        (client().with_secret_access_key("wrong"), "export_target_refused", ErrorKind::Misconfigured, "credentials"),
        (client().with_access_key_id("stranger"), "export_target_refused", ErrorKind::Misconfigured, "credentials"),
        (s3.client(no_such_bucket), "export_target_missing", ErrorKind::Misconfigured, "create the folder or bucket"),
        (s3.client(nobody), "export_target", ErrorKind::Unavailable, "export again"),
    ] {
        let error = stage.exports.run(&stage.a, &into(store), &mut |_| ()).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), (code, kind), "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
        let shown = format!("{error:?}");
        assert!(!shown.contains("secret-of-the-test"), "no secret is shown");
    }
    answering.join().unwrap();
    assert_eq!(s3.listed().await, Vec::<String>::new());
}

/// The answer to one request after the other is lost: that of a part, of a completion, of the manifest itself.
#[tokio::test]
async fn an_export_that_loses_any_answer_leaves_nothing_to_see() {
    let (stage, s3) = (Stage::start().await, S3::start());
    let network = Proxy::start(s3.address).unwrap();
    stage.exports.run(&stage.a, &into(s3.client(network.address())), &mut |_| ()).await.unwrap();
    let (requests, whole) = (network.flights(), s3.listed().await);
    assert!(requests > 30, "{requests}");
    let last = requests - 1;
    let mut failed = 0;
    for lost in (0..last - 2).step_by(11).chain(last - 2..=last) {
        // A connection of its own for each client, so that the count is of this export's requests.
        let network = Proxy::start(s3.address).unwrap();
        network.cut_instead_of_answer(lost);
        let target = into(s3.client(network.address()));
        let error = stage.exports.run(&stage.a, &target, &mut |_| ()).await.unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("export_target", true), "{error}");
        assert_eq!(s3.listed().await, whole, "the answer to request {lost} was lost");
        failed += 1;
    }
    assert!(failed > 5);
    assert_eq!(complete(&s3).await.len(), 1);
}

/// Nobody cleans up after a process that is killed: what it leaves names itself no export, and a later clean-up finds it.
#[test]
fn a_process_that_dies_in_the_middle_presents_nothing() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, s3) = (runtime(), S3::start());
    let stage = first.block_on(async {
        let stage = Stage::start().await;
        fill(&stage, 2_000).await;
        stage
    });
    let (mut polls, mut left_something) = (8, false);
    loop {
        // Its runtime ends with it, and with the runtime what a drop would do in the background.
        let done = runtime().block_on(async {
            let pool = async |role| db::pool_options().connect_with(stage.db.options(role)).await.unwrap();
            let exports = Exports::new(
                TenantPool::open(pool("saas_app").await, &[&CORE, &SCHEMA]).await.unwrap(),
                SystemPool::open(pool("saas_system").await, &[&CORE, &SCHEMA]).await.unwrap(),
                Arc::new(stage.db.clock().clone()),
            );
            let (target, mut progress) = (into(s3.client(s3.address)), |_: &_| ());
            let mut run = Box::pin(exports.run(&stage.a, &target, &mut progress));
            for _ in 0..polls {
                if poll!(run.as_mut()).is_ready() {
                    return true;
                }
                tokio::task::yield_now().await;
            }
            std::mem::forget(run);
            false
        });
        let listed = first.block_on(s3.listed());
        let (whole, _) = first.block_on(presented(&s3, &listed));
        if done || !whole.is_empty() {
            // It may have died between the manifest and the word of it.
            assert_eq!(whole.len(), 1, "after {polls} polls: {listed:?}");
            break;
        }
        left_something |= !listed.is_empty();
        polls *= 2;
    }
    assert!(left_something, "it died in the middle");
    first.block_on(async move { drop(stage) });
}
