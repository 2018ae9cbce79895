//! The term in the database, and writes that are refused once somebody else has raised it.

use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{Sqlite, Transaction};
use uuid::Uuid;

use super::{SqliteStore, codec};
use crate::store::{Result, StoreError, Term};

pub(super) const TERM: &str = "SELECT number, instance FROM term";

/// The term that a handle has raised; none where it has not.
pub(super) type Own = Arc<Mutex<Option<Term>>>;

impl SqliteStore {
    /// A transaction that writes migrations: refused where somebody else has raised the term since.
    pub(super) async fn writer_in_office(&self) -> Result<Transaction<'static, Sqlite>> {
        let mut transaction = self.writer().await?;
        let own = *self.office.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = own {
            let row = sqlx::query(TERM).fetch_optional(&mut *transaction).await?;
            if row.as_ref().map(codec::term_from).transpose()? != Some(own) {
                return Err(StoreError::NotInOffice);
            }
        }
        Ok(transaction)
    }

    /// Raises the term and binds this handle to it.
    pub(super) async fn raise(&self, at_least: u64, instance: Uuid) -> Result<Term> {
        let sql = "INSERT INTO term (only_row, number, instance) VALUES (1, ?1 + 1, ?2)
            ON CONFLICT (only_row) DO UPDATE SET number = max(number, ?1) + 1, instance = ?2
            RETURNING number, instance";
        let mut transaction = self.writer().await?;
        let row = sqlx::query(sql)
            .bind(codec::signed(at_least))
            .bind(instance.to_string())
            .fetch_one(&mut *transaction)
            .await?;
        let term = codec::term_from(&row)?;
        transaction.commit().await?;
        *self.office.lock().unwrap_or_else(PoisonError::into_inner) = Some(term);
        Ok(term)
    }
}
