//! Watching files: the mapping of accounts, and the users' folders in the spool.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Cluster;
use super::accounts::{Accounts, BadAccounts};

const EVERY: Duration = Duration::from_secs(2);

impl Cluster {
    pub(super) async fn watch_files(self: Arc<Self>) {
        let mut read_at = None;
        let mut is_swept = false;
        loop {
            let cluster = Arc::clone(&self);
            let looking = move || cluster.look_at_files(read_at, is_swept);
            if let Ok(found) = tokio::task::spawn_blocking(looking).await {
                (read_at, is_swept) = found;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn look_at_files(&self, read_at: Option<SystemTime>, is_swept: bool) -> (Option<SystemTime>, bool) {
        let read_at = self.read_accounts(read_at).unwrap_or_else(|bad| {
            tracing::error!(cluster = self.settings.name, %bad, "the mapping of accounts stays as it was");
            // Complained about once, until the file changes again.
            modified(&self.settings.accounts).or(read_at)
        });
        let users = self.seen().accounts.users();
        match self.spool.prepared(users) {
            Ok(users) => {
                if !is_swept {
                    // An order that is being claimed has a draft too.
                    let _gate = self.ledger.gate();
                    users.iter().for_each(|user| {
                        let _not_ours = self.spool.sweep(user);
                    });
                }
                let mut seen = self.seen();
                seen.users = Some(Arc::new(users));
                seen.spool_well();
                (read_at, true)
            }
            Err(cause) => {
                self.seen().spool_unwell(&self.settings.name, cause.to_string());
                (read_at, is_swept)
            }
        }
    }

    fn read_accounts(&self, read_at: Option<SystemTime>) -> Result<Option<SystemTime>, BadAccounts> {
        if read_at.is_some() && modified(&self.settings.accounts) == read_at {
            return Ok(read_at);
        }
        let (accounts, changed) = Accounts::read(&self.settings.accounts)?;
        let mut seen = self.seen();
        if *seen.accounts != accounts {
            tracing::info!(cluster = self.settings.name, "the mapping of accounts was read again");
            seen.accounts = Arc::new(accounts);
        }
        Ok(Some(changed))
    }
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|it| it.modified()).ok()
}
