//! Exports in a folder of this machine.

use std::{
    fmt, fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use saas_core::{ExportId, TenantId};

use super::target::{ExportDraft, ExportFile, ExportPath, ExportTarget, TargetError, TargetFault};

/// A folder that holds exports as `<tenant>/<export>/`.
///
/// A draft is written beside its place as `<tenant>/.<export>.partial` and renamed when everything in it is on the disk.
/// A process that dies leaves the partial folder behind, which [`remove_partial`](Self::remove_partial) clears away.
#[derive(Debug, Clone)]
pub struct LocalFolder {
    root: PathBuf,
}

impl LocalFolder {
    /// Exports go below `root`, which is created when it is missing.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Removes what processes that died have left of a tenant's exports; call it while none of the tenant's is running.
    /// Answers how many there were.
    ///
    /// # Errors
    /// When the folder cannot be read or changed.
    pub async fn remove_partial(&self, tenant: TenantId) -> Result<usize, TargetError> {
        let folder = self.root.join(tenant.to_string());
        blocking("remove partial exports", move || {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                entries => entries?,
            };
            let mut removed = 0;
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "partial") {
                    fs::remove_dir_all(path)?;
                    removed += 1;
                }
            }
            Ok(removed)
        })
        .await
    }
}

#[async_trait]
impl ExportTarget for LocalFolder {
    async fn begin(&self, tenant: TenantId, export: ExportId) -> Result<Box<dyn ExportDraft>, TargetError> {
        let parent = self.root.join(tenant.to_string());
        let draft = Draft {
            partial: parent.join(format!(".{export}.partial")),
            place: parent.join(export.to_string()),
            parent,
            is_published: false,
        };
        let (parent, partial) = (draft.parent.clone(), draft.partial.clone());
        blocking("create its folder", move || {
            fs::create_dir_all(parent)?;
            fs::create_dir(partial)
        })
        .await?;
        Ok(Box::new(draft))
    }

    /// By its new name, a folder that is half removed looks like what a process that died has left.
    async fn remove(&self, tenant: TenantId, export: ExportId) -> Result<(), TargetError> {
        let parent = self.root.join(tenant.to_string());
        blocking("remove an export", move || {
            let partial = parent.join(format!(".{export}.partial"));
            present(fs::remove_dir_all(&partial))?;
            present(fs::rename(parent.join(export.to_string()), &partial))?;
            present(fs::remove_dir_all(partial))
        })
        .await
    }
}

/// What is not there needs no removal.
fn present(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

struct Draft {
    parent: PathBuf,
    partial: PathBuf,
    place: PathBuf,
    is_published: bool,
}

#[async_trait]
impl ExportDraft for Draft {
    async fn create(&mut self, path: &ExportPath) -> Result<Box<dyn ExportFile>, TargetError> {
        let path = self.partial.join(path.as_str());
        let file = blocking("create a file", move || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::File::create_new(path)
        })
        .await?;
        Ok(Box::new(LocalFile { file: Some(file) }))
    }

    /// The thread owns the draft: a caller that goes away meanwhile cannot have it removed while it is renamed.
    async fn publish(mut self: Box<Self>, manifest: Vec<u8>) -> Result<String, TargetError> {
        blocking("publish it", move || {
            let mut file = fs::File::create_new(self.partial.join("manifest.json"))?;
            file.write_all(&manifest)?;
            file.sync_all()?;
            sync_folders(&self.partial)?;
            if self.place.try_exists()? {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "an export of this id is there"));
            }
            fs::rename(&self.partial, &self.place)?;
            self.is_published = true;
            fs::File::open(&self.parent)?.sync_all()?;
            Ok(self.place.display().to_string())
        })
        .await
    }

    async fn abort(self: Box<Self>) -> Result<(), TargetError> {
        // The drop removes the folder.
        Ok(())
    }
}

/// A dropped draft leaves nothing, whatever dropped it.
impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("place", &self.place).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct LocalFile {
    /// `None` only while a thread writes to it, or after that failed.
    file: Option<fs::File>,
}

impl LocalFile {
    async fn with<F>(&mut self, action: &'static str, work: F) -> Result<(), TargetError>
    where
        F: FnOnce(&mut fs::File) -> io::Result<()> + Send + 'static,
    {
        let Some(mut file) = self.file.take() else {
            return Err(TargetError::new(action, "an earlier write to the file failed or was dropped"));
        };
        self.file = Some(blocking(action, move || work(&mut file).map(|()| file)).await?);
        Ok(())
    }
}

#[async_trait]
impl ExportFile for LocalFile {
    async fn write(&mut self, chunk: Vec<u8>) -> Result<(), TargetError> {
        self.with("write a file", move |file| file.write_all(&chunk)).await
    }

    async fn finish(mut self: Box<Self>) -> Result<(), TargetError> {
        self.with("finish a file", |file| file.sync_all()).await
    }
}

/// Puts the entries of a folder and of those below it on the disk.
fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    fs::File::open(folder)?.sync_all()
}

/// Files block: on a thread that may.
async fn blocking<T, F>(action: &'static str, work: F) -> Result<T, TargetError>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| {
            let fault = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => TargetFault::Refused,
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => TargetFault::Missing,
                _ => TargetFault::Failed,
            };
            TargetError::of(fault, action, error)
        }),
        Err(error) => Err(TargetError::new(action, error)),
    }
}
