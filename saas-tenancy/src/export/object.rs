//! Exports in an object store: memory, S3 and whatever else the crate `object_store` reaches.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart, path::Path};
use saas_core::{ExportId, TenantId};

use super::target::{ExportDraft, ExportFile, ExportPath, ExportTarget, TargetError};

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
}

#[async_trait]
impl ExportTarget for ObjectTarget {
    async fn begin(&self, tenant: TenantId, export: ExportId) -> Result<Box<dyn ExportDraft>, TargetError> {
        let place = self.prefix.clone().join(tenant.to_string()).join(export.to_string());
        Ok(Box::new(Draft { store: Arc::clone(&self.store), place, written: Vec::new() }))
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
        let upload =
            self.store.put_multipart(&path).await.map_err(|error| TargetError::new("begin an upload", error))?;
        Ok(Box::new(ObjectFile { upload: Some(WriteMultipart::new(upload)) }))
    }

    async fn publish(mut self: Box<Self>, manifest: Vec<u8>) -> Result<String, TargetError> {
        let path = self.path("manifest.json");
        self.store.put(&path, manifest.into()).await.map_err(|error| TargetError::new("write the manifest", error))?;
        self.written.clear();
        Ok(self.place.to_string())
    }

    async fn abort(mut self: Box<Self>) -> Result<(), TargetError> {
        let written = std::mem::take(&mut self.written);
        remove(Arc::clone(&self.store), written).await.map_err(|error| TargetError::new("remove what it wrote", error))
    }
}

/// A dropped draft removes its objects in the background, where there is a runtime.
impl Drop for Draft {
    fn drop(&mut self) {
        let written = std::mem::take(&mut self.written);
        if let (false, Ok(runtime)) = (written.is_empty(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(remove(Arc::clone(&self.store), written));
        }
    }
}

async fn remove(store: Arc<dyn ObjectStore>, written: Vec<Path>) -> Result<(), object_store::Error> {
    let mut failed = None;
    for path in written {
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
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
