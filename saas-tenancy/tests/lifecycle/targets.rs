//! Targets of the tests' own: one that keeps an export in memory and watches it, and a folder that goes away.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use saas_core::{ExportId, TenantId};
use saas_tenancy::export::{ExportDraft, ExportFile, ExportPath, ExportTarget, TargetError, TargetFault};

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// What happens when a file is created: a chance to change the database in the middle of an export.
pub(crate) type OnCreate = Box<dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Keeps files in memory, or only counts them.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pub(crate) files: Files,
    /// The longest chunk and the sum of all.
    pub(crate) counted: Arc<Mutex<(usize, u64)>>,
    pub(crate) counts_only: bool,
    pub(crate) fails_at_file: Option<usize>,
    /// What the failure is; by default one that another try may not meet.
    pub(crate) fault: Option<TargetFault>,
    pub(crate) on_create: Option<Arc<OnCreate>>,
    pub(crate) state: Arc<Mutex<&'static str>>,
}

impl Memory {
    pub(crate) fn text(&self, path: &str) -> String {
        String::from_utf8(self.files.lock().unwrap()[path].clone()).unwrap()
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

#[async_trait]
impl ExportTarget for Memory {
    async fn begin(&self, _: TenantId, _: ExportId) -> Result<Box<dyn ExportDraft>, TargetError> {
        *self.state.lock().unwrap() = "begun";
        Ok(Box::new(MemoryDraft { target: self.clone(), created: 0 }))
    }

    async fn remove(&self, _: TenantId, _: ExportId) -> Result<(), TargetError> {
        self.files.lock().unwrap().clear();
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryDraft {
    target: Memory,
    created: usize,
}

#[async_trait]
impl ExportDraft for MemoryDraft {
    async fn create(&mut self, path: &ExportPath) -> Result<Box<dyn ExportFile>, TargetError> {
        self.created += 1;
        if self.target.fails_at_file == Some(self.created) {
            let fault = self.target.fault.unwrap_or(TargetFault::Failed);
            return Err(TargetError::of(fault, "create a file", "the disk is full"));
        }
        if let (1, Some(on_create)) = (self.created, &self.target.on_create) {
            on_create().await;
        }
        self.target.files.lock().unwrap().insert(path.to_string(), Vec::new());
        Ok(Box::new(MemoryFile { target: self.target.clone(), path: path.to_string() }))
    }

    async fn publish(self: Box<Self>, manifest: Vec<u8>) -> Result<String, TargetError> {
        self.target.files.lock().unwrap().insert("manifest.json".to_owned(), manifest);
        *self.target.state.lock().unwrap() = "published";
        Ok("memory".to_owned())
    }

    async fn abort(self: Box<Self>) -> Result<(), TargetError> {
        *self.target.state.lock().unwrap() = "aborted";
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryFile {
    target: Memory,
    path: String,
}

#[async_trait]
impl ExportFile for MemoryFile {
    async fn write(&mut self, chunk: Vec<u8>) -> Result<(), TargetError> {
        let mut counted = self.target.counted.lock().unwrap();
        *counted = (counted.0.max(chunk.len()), counted.1 + chunk.len() as u64);
        if !self.target.counts_only {
            self.target.files.lock().unwrap().get_mut(&self.path).unwrap().extend(chunk);
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), TargetError> {
        Ok(())
    }
}

/// A folder that is removed at the end of its test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let name = ExportId::mint(&saas_core::SystemClock).to_string();
        Self(std::env::temp_dir().join(format!("saas-export-{name}")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Every file below, relative, in order.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.0, &mut found);
        let mut relative: Vec<String> =
            found.iter().map(|path| path.strip_prefix(&self.0).unwrap().display().to_string()).collect();
        relative.sort();
        relative
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
