//! How far each room is, in a table of its own in Synapse's database, which Synapse does not look at.

use tokio_postgres::{Client, GenericClient, Transaction};

use crate::{Error, failed};

/// How far a room is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last group that was dealt with.
    pub last_group: Option<i64>,
    /// The heads of the levels, the finest first.
    pub heads: Vec<Option<i64>>,
    /// How many rows have been removed in all.
    pub rows_removed: i64,
}

/// Makes the table.
pub async fn create(client: &Client) -> Result<(), Error> {
    // Asked first, since making needs a right that the role may lack later on.
    let there = client
        .query_one("SELECT to_regclass('matrix_stack_compress_state') IS NOT NULL", &[])
        .await
        .map_err(failed("look for the table of progress"))?;
    if there.get(0) {
        return Ok(());
    }
    client
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS matrix_stack_compress_state (room_id TEXT PRIMARY KEY, last_group BIGINT NOT NULL, \
             heads BIGINT[] NOT NULL, rows_removed BIGINT NOT NULL, updated TIMESTAMPTZ NOT NULL DEFAULT now())",
        )
        .await
        .map_err(failed("make the table of progress"))
}

async fn has(client: &impl GenericClient, table: &str) -> Result<bool, Error> {
    let row = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table])
        .await
        .map_err(failed("look for tables of progress"))?;
    Ok(row.get(0))
}

/// How far a room is: by this program, or else by rust-synapse-compress-state's automatic compressor.
pub(crate) async fn read(client: &Client, room_id: &str) -> Result<Progress, Error> {
    if has(client, "matrix_stack_compress_state").await? {
        let row = client
            .query_opt(
                "SELECT last_group, heads, rows_removed FROM matrix_stack_compress_state WHERE room_id = $1",
                &[&room_id],
            )
            .await
            .map_err(failed("read the progress"))?;
        if let Some(row) = row {
            return Ok(Progress {
                last_group: Some(row.get(0)),
                heads: row.get(1),
                rows_removed: row.get(2),
            });
        }
    }
    if !has(client, "state_compressor_progress").await? || !has(client, "state_compressor_state").await? {
        return Ok(Progress::default());
    }
    let last = client
        .query_opt("SELECT last_compressed FROM state_compressor_progress WHERE room_id = $1", &[&room_id])
        .await
        .map_err(failed("read the other compressor's progress"))?;
    let heads = client
        .query(
            "SELECT current_head FROM state_compressor_state WHERE room_id = $1 ORDER BY level_num",
            &[&room_id],
        )
        .await
        .map_err(failed("read the other compressor's levels"))?;
    Ok(Progress {
        last_group: last.map(|row| row.get(0)),
        heads: heads.iter().map(|row| row.get(0)).collect(),
        rows_removed: 0,
    })
}

pub(crate) async fn write(tx: &Transaction<'_>, room_id: &str, progress: &Progress) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO matrix_stack_compress_state (room_id, last_group, heads, rows_removed) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (room_id) DO UPDATE SET last_group = EXCLUDED.last_group, heads = EXCLUDED.heads, \
         rows_removed = EXCLUDED.rows_removed, updated = now()",
        &[&room_id, &progress.last_group.unwrap_or(0), &progress.heads, &progress.rows_removed],
    )
    .await
    .map_err(failed("write the progress"))?;
    Ok(())
}

/// Begins a room anew.
pub(crate) async fn reset(client: &Client, room_id: &str) -> Result<(), Error> {
    client
        .execute(
            "INSERT INTO matrix_stack_compress_state (room_id, last_group, heads, rows_removed) VALUES ($1, 0, '{}', 0) \
             ON CONFLICT (room_id) DO UPDATE SET last_group = 0, heads = '{}', updated = now()",
            &[&room_id],
        )
        .await
        .map_err(failed("begin the room anew"))?;
    Ok(())
}

/// Takes a room for this connection, if no other run has it.
pub(crate) async fn lock(client: &Client, room_id: &str) -> Result<bool, Error> {
    let row = client
        .query_one(
            "SELECT pg_try_advisory_lock(hashtextextended('matrix-stack compress-state ' || $1, 0))",
            &[&room_id],
        )
        .await
        .map_err(failed("take the room"))?;
    Ok(row.get(0))
}

pub(crate) async fn unlock(client: &Client, room_id: &str) -> Result<(), Error> {
    client
        .execute(
            "SELECT pg_advisory_unlock(hashtextextended('matrix-stack compress-state ' || $1, 0))",
            &[&room_id],
        )
        .await
        .map_err(failed("give the room back"))?;
    Ok(())
}

/// How far each room is that was begun.
pub(crate) async fn last_groups(client: &Client) -> Result<std::collections::HashMap<String, i64>, Error> {
    let mut last = std::collections::HashMap::new();
    // This program's own word comes later and counts.
    for (table, question) in [
        ("state_compressor_progress", "SELECT room_id, last_compressed FROM state_compressor_progress"),
        ("matrix_stack_compress_state", "SELECT room_id, last_group FROM matrix_stack_compress_state"),
    ] {
        if has(client, table).await? {
            let rows = client.query(question, &[]).await.map_err(failed("read the progress"))?;
            last.extend(rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1))));
        }
    }
    Ok(last)
}
