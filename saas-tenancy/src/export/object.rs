//! Exports in an object store: memory, S3 and whatever else the crate `object_store` reaches.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, WriteMultipart, path::Path};
use saas_core::{ExportId, TenantId};

use super::target::{ExportDraft, ExportFile, ExportPath, ExportTarget, TargetError, TargetFault};

const MANIFEST: &str = "manifest.json";

/// How many parts of a file may be on their way at once; each is 5 MiB, the least that S3 takes.
const PARTS_UNDER_WAY: usize = 2;

/// A store that holds exports as `<prefix>/<tenant>/<export>/`.
///
/// An object store has no rename, so the manifest is what publishes: it is written last, and objects without a
/// `manifest.json` beside them are no export. Let a rule of the store end multipart uploads that nobody finished.
#[derive(Debug, Clone)]
pub struct ObjectTarget {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl ObjectTarget {
    /// Exports go below `prefix` of the store.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix }
    }

    fn place(&self, tenant: TenantId, export: ExportId) -> Path {
        self.prefix.clone().join(tenant.to_string()).join(export.to_string())
    }
}

#[async_trait]
impl ExportTarget for ObjectTarget {
    async fn begin(&self, tenant: TenantId, export: ExportId) -> Result<Box<dyn ExportDraft>, TargetError> {
        let place = self.place(tenant, export);
        Ok(Box::new(Draft { store: Arc::clone(&self.store), place, written: Vec::new() }))
    }

    async fn remove(&self, tenant: TenantId, export: ExportId) -> Result<(), TargetError> {
        let place = self.place(tenant, export);
        let failed = failed("remove an export");
        let mut written = vec![place.clone().join(MANIFEST)];
        let listed: Vec<_> = self.store.list(Some(&place)).try_collect().await.map_err(&failed)?;
        written.extend(listed.into_iter().map(|object| object.location));
        remove(&*self.store, written).await.map_err(failed)
    }
}

struct Draft {
    store: Arc<dyn ObjectStore>,
    place: Path,
    /// What a draft that is not published removes.
    written: Vec<Path>,
}

impl Draft {
    fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.place.clone(), |path, segment| path.join(segment))
    }
}

#[async_trait]
impl ExportDraft for Draft {
    async fn create(&mut self, path: &ExportPath) -> Result<Box<dyn ExportFile>, TargetError> {
        let path = self.path(path.as_str());
        self.written.push(path.clone());
        let upload = self.store.put_multipart(&path).await.map_err(failed("begin an upload"))?;
        Ok(Box::new(ObjectFile { upload: Some(WriteMultipart::new(upload)) }))
    }

    async fn publish(mut self: Box<Self>, manifest: Vec<u8>) -> Result<String, TargetError> {
        let path = self.path(MANIFEST);
        if let Err(error) = self.store.put(&path, manifest.into()).await {
            // It may have arrived all the same, and would speak for files that are about to go.
            self.written.insert(0, path);
            let _ = self.abort().await;
            return Err(failed("write the manifest")(error));
        }
        self.written.clear();
        Ok(self.place.to_string())
    }

    async fn abort(mut self: Box<Self>) -> Result<(), TargetError> {
        // Kept until all are gone: whoever drops this half-way leaves the rest to the drop.
        let removed = remove(&*self.store, self.written.clone()).await;
        self.written.clear();
        removed.map_err(failed("remove what it wrote"))
    }
}

/// A dropped draft removes its objects in the background, where there is a runtime.
impl Drop for Draft {
    fn drop(&mut self) {
        let written = std::mem::take(&mut self.written);
        if let (false, Ok(runtime)) = (written.is_empty(), tokio::runtime::Handle::try_current()) {
            let store = Arc::clone(&self.store);
            runtime.spawn(async move { remove(&*store, written).await });
        }
    }
}

/// One after the other, so that a manifest, which is first, is gone before any file it speaks for. One that cannot be
/// removed keeps the others where they are.
async fn remove(store: &dyn ObjectStore, written: Vec<Path>) -> Result<(), Error> {
    for path in written {
        match store.delete(&path).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(action: &'static str) -> impl Fn(Error) -> TargetError {
    move |error| {
        let fault = match &error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => TargetFault::Refused,
            // Objects are written whether there are others or not, so what is missing is the bucket.
            Error::NotFound { .. } => TargetFault::Missing,
            _ => TargetFault::Failed,
        };
        TargetError::of(fault, action, error)
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("place", &self.place).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct ObjectFile {
    /// `None` only when the file is finished.
    upload: Option<WriteMultipart>,
}

#[async_trait]
impl ExportFile for ObjectFile {
    async fn write(&mut self, chunk: Vec<u8>) -> Result<(), TargetError> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        upload.wait_for_capacity(PARTS_UNDER_WAY).await.map_err(|error| TargetError::new("upload a part", error))?;
        upload.put(chunk.into());
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), TargetError> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        // Whatever it is: when the answer is lost, the crate goes on to abort the upload, and answers what that came to.
        upload.finish().await.map(drop).map_err(|error| TargetError::new("finish an upload", error))
    }
}

/// A dropped upload is given up in the background, where there is a runtime.
impl Drop for ObjectFile {
    fn drop(&mut self) {
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(upload.abort());
        }
    }
}
