//! From a cursor into files, a chunk at a time.

use std::fmt::Write as _;

use futures_util::TryStreamExt as _;
use saas_core::{CoreError, TenantId, TenantTx};
use sha2::{Digest as _, Sha256};
use sqlx::{Row as _, ValueRef as _, postgres::PgRow};

use super::{
    ExportProgress, OnProgress,
    catalog::{self, Part, Table},
    encode::{self, Encoder},
    manifest::{FileFormat, FileManifest, LeftOut, TableManifest},
    target::{ExportDraft, ExportFile, ExportPath},
};
use crate::TenancyError;

/// Values as text that does not depend on the login's or the database's settings.
const FORMS: &str =
    "set local timezone = 'UTC'; set local datestyle = 'ISO, YMD'; set local intervalstyle = 'iso_8601';
     set local bytea_output = 'hex'; set local extra_float_digits = 1; set local xmloption = 'content'";
/// Each fetch is a statement of its own, so that none lasts long. Rows still arrive one by one.
const FETCH: &str = "fetch forward 1000 from saas_export";
const FETCHED: u64 = 1_000;
const CLOSE: &str = "close saas_export";

/// Writes the tables of one or two databases into one draft.
pub(super) struct Writer<'e> {
    tenant: TenantId,
    draft: &'e mut dyn ExportDraft,
    progress: OnProgress<'e>,
    chunk: usize,
    bytes: u64,
    tables: Vec<TableManifest>,
    left_out: Vec<LeftOut>,
}

impl<'e> Writer<'e> {
    pub(super) fn new(
        tenant: TenantId,
        draft: &'e mut dyn ExportDraft,
        progress: OnProgress<'e>,
        chunk: usize,
    ) -> Self {
        Self { tenant, draft, progress, chunk, bytes: 0, tables: Vec::new(), left_out: Vec::new() }
    }

    /// Writes every table of a part of the transaction's database.
    pub(super) async fn part(&mut self, tx: &mut TenantTx, part: Part) -> Result<(), TenancyError> {
        sqlx::raw_sql(FORMS).execute(&mut **tx).await.map_err(CoreError::from_database)?;
        let (tables, left_out) = catalog::tables(tx, part).await?;
        self.left_out.extend(left_out);
        for table in tables {
            let written = self.table(tx, table).await?;
            self.tables.push(written);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> (Vec<TableManifest>, Vec<LeftOut>) {
        (self.tables, self.left_out)
    }

    async fn table(&mut self, tx: &mut TenantTx, table: Table) -> Result<TableManifest, TenancyError> {
        let mut lines = self.file(&table, FileFormat::JsonLines, "jsonl").await?;
        let mut records = self.file(&table, FileFormat::Csv, "csv").await?;
        encode::csv_header(&mut records.buffer, table.columns.iter().map(|column| column.name.as_str()));
        let encoder = Encoder::new(table.columns.iter().map(|column| (column.name.clone(), column.encoding)));
        open_cursor(tx, &table, self.tenant).await?;
        let mut rows = 0;
        loop {
            let before = rows;
            let mut stream = sqlx::raw_sql(FETCH).fetch(&mut **tx);
            while let Some(row) = stream.try_next().await.map_err(CoreError::from_database)? {
                let values = texts(&row, table.columns.len())?;
                encoder.json_line(&mut lines.buffer, values.iter().copied());
                encoder.csv_record(&mut records.buffer, values.iter().copied());
                rows += 1;
                if lines.buffer.len() >= self.chunk || records.buffer.len() >= self.chunk {
                    self.bytes += lines.flush(self.chunk).await? + records.flush(self.chunk).await?;
                    (self.progress)(&ExportProgress { table: table.name.clone(), rows, bytes: self.bytes });
                }
            }
            if rows - before < FETCHED {
                break;
            }
        }
        sqlx::raw_sql(CLOSE).execute(&mut **tx).await.map_err(CoreError::from_database)?;
        let mut files = Vec::new();
        for mut file in [lines, records] {
            self.bytes += file.flush(0).await?;
            files.push(file.finish().await?);
        }
        (self.progress)(&ExportProgress { table: table.name.clone(), rows, bytes: self.bytes });
        Ok(TableManifest { name: table.name, rows, columns: table.columns, omitted_columns: table.omitted, files })
    }

    async fn file(
        &mut self,
        table: &Table,
        format: FileFormat,
        extension: &'static str,
    ) -> Result<Output, TenancyError> {
        let path = ExportPath::of_table(&table.schema, &table.table, extension);
        let file = self.draft.create(&path).await?;
        let manifest = FileManifest { path: path.to_string(), format, bytes: 0, sha256: String::new() };
        Ok(Output { file, manifest, hash: Sha256::new(), buffer: Vec::new() })
    }
}

async fn open_cursor(tx: &mut TenantTx, table: &Table, tenant: TenantId) -> Result<(), CoreError> {
    let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    sqlx::query("select saas.open_export($1::text::regclass, $2::text[]::name[], $3)")
        .bind(&table.name)
        .bind(columns)
        .bind(tenant.as_uuid())
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// The values of a row as the simple protocol brings them: each type's own text.
fn texts(row: &PgRow, columns: usize) -> Result<Vec<Option<&str>>, CoreError> {
    (0..columns)
        .map(|place| {
            let value = row.try_get_raw(place).map_err(CoreError::from_database)?;
            if value.is_null() {
                return Ok(None);
            }
            value.as_str().map(Some).map_err(|cause| CoreError::Statement { cause })
        })
        .collect()
}

/// One file, with what is not written yet.
struct Output {
    file: Box<dyn ExportFile>,
    manifest: FileManifest,
    hash: Sha256,
    buffer: Vec<u8>,
}

impl Output {
    /// Writes what has come together, if it is anything, and leaves room for the next `chunk`. Answers how much it was.
    async fn flush(&mut self, chunk: usize) -> Result<u64, TenancyError> {
        if self.buffer.is_empty() {
            return Ok(0);
        }
        let bytes = std::mem::replace(&mut self.buffer, Vec::with_capacity(chunk));
        self.hash.update(&bytes);
        let written = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.manifest.bytes += written;
        self.file.write(bytes).await?;
        Ok(written)
    }

    async fn finish(mut self) -> Result<FileManifest, TenancyError> {
        self.file.finish().await?;
        for byte in self.hash.finalize() {
            // Writing to a String cannot fail.
            let _ = write!(self.manifest.sha256, "{byte:02x}");
        }
        Ok(self.manifest)
    }
}
