//! Groups that nothing refers to, and rows whose group is gone.

use serde::Serialize;
use tokio_postgres::Client;

use crate::{Error, failed};

/// How many groups are dealt with in one transaction.
const BATCH: usize = 500;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Unused {
    /// Groups that no event refers to, nor anything that an event refers to.
    pub unreferenced: Vec<i64>,
    /// Groups of which rows or edges are left, though they are gone, and that nothing lies upon.
    pub orphaned: Vec<i64>,
    /// How many groups were marked for Synapse to delete.
    pub marked: u64,
    /// How many rows of groups that are gone were deleted.
    pub rows_deleted: u64,
}

/// Looks for them. This reads whole tables.
pub async fn find(client: &Client) -> Result<Unused, Error> {
    let what = "look for groups that are not used";
    let there = client
        .query_one("SELECT to_regclass('event_to_state_groups') IS NOT NULL", &[])
        .await
        .map_err(failed(what))?;
    let mut unused = Unused::default();
    client.batch_execute("SET statement_timeout = 0").await.map_err(failed(what))?;
    if there.get(0) {
        let persisting = client
            .query_one("SELECT to_regclass('state_groups_persisting') IS NOT NULL", &[])
            .await
            .map_err(failed(what))?;
        let persisting =
            if persisting.get(0) { "UNION SELECT state_group FROM state_groups_persisting" } else { "" };
        let question = format!(
            "WITH RECURSIVE used(id) AS (SELECT id FROM (SELECT state_group AS id FROM event_to_state_groups {persisting}) u \
             UNION SELECT e.prev_state_group FROM state_group_edges e JOIN used u ON e.state_group = u.id) \
             SELECT g.id FROM state_groups g WHERE NOT EXISTS (SELECT FROM used u WHERE u.id = g.id) ORDER BY g.id"
        );
        let rows = client.query(&question, &[]).await.map_err(failed(what))?;
        unused.unreferenced = rows.iter().map(|row| row.get(0)).collect();
    }
    unused.orphaned = orphaned(client).await?;
    Ok(unused)
}

async fn orphaned(client: &Client) -> Result<Vec<i64>, Error> {
    // A group that is gone but has others upon it still counts for what they resolve to.
    let rows = client
        .query(
            "SELECT o.id FROM (SELECT DISTINCT state_group AS id FROM state_groups_state UNION \
             SELECT state_group FROM state_group_edges) o \
             WHERE NOT EXISTS (SELECT FROM state_groups g WHERE g.id = o.id) \
             AND NOT EXISTS (SELECT FROM state_group_edges e WHERE e.prev_state_group = o.id) ORDER BY o.id",
            &[],
        )
        .await
        .map_err(failed("look for rows whose group is gone"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Removes them. Unreferenced groups are marked in `state_groups_pending_deletion`, as Synapse does it: it deletes them itself
/// after ten minutes, if nothing has begun to use them by then. Rows of groups that are gone are deleted at once.
pub async fn remove(client: &mut Client, unused: &mut Unused) -> Result<(), Error> {
    let what = "mark groups for deletion";
    if !unused.unreferenced.is_empty() {
        let there = client
            .query_one("SELECT to_regclass('state_groups_pending_deletion') IS NOT NULL", &[])
            .await
            .map_err(failed(what))?;
        if !there.get::<_, bool>(0) {
            return Err(Error::OldSynapse);
        }
    }
    client.batch_execute("SET lock_timeout = '100ms'").await.map_err(failed(what))?;
    for batch in unused.unreferenced.chunks(BATCH) {
        // Looked at again, since looking for them may have taken long.
        unused.marked += client
            .execute(
                "INSERT INTO state_groups_pending_deletion (state_group, insertion_ts) \
                 SELECT g.id, (extract(epoch FROM now()) * 1000)::bigint FROM state_groups g WHERE g.id = ANY($1) \
                 AND NOT EXISTS (SELECT FROM event_to_state_groups e WHERE e.state_group = g.id) \
                 AND NOT EXISTS (SELECT FROM state_groups_persisting p WHERE p.state_group = g.id) \
                 ON CONFLICT (state_group) DO NOTHING",
                &[&batch],
            )
            .await
            .map_err(failed(what))?;
    }
    let what = "delete rows whose group is gone";
    let mut left = unused.orphaned.clone();
    while !left.is_empty() {
        for batch in left.chunks(BATCH) {
            let tx = client.transaction().await.map_err(failed(what))?;
            let gone = "state_group = ANY($1) AND NOT EXISTS (SELECT FROM state_groups g WHERE g.id = t.state_group) \
                        AND NOT EXISTS (SELECT FROM state_group_edges e WHERE e.prev_state_group = t.state_group)";
            unused.rows_deleted += tx
                .execute(&format!("DELETE FROM state_groups_state t WHERE {gone}"), &[&batch])
                .await
                .map_err(failed(what))?;
            tx.execute(&format!("DELETE FROM state_group_edges t WHERE {gone}"), &[&batch])
                .await
                .map_err(failed(what))?;
            tx.commit().await.map_err(failed(what))?;
        }
        // Those that lay under them.
        let next = orphaned(client).await?;
        if next == left {
            break;
        }
        left = next;
    }
    Ok(())
}
