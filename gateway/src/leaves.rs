//! Leaves: this gateway's certificates for its two faces, taken from their files again while it runs.
//!
//! Invariants: a certificate and its key that do not belong together are never used; those of before stay. Files of one face
//! whose disk does not answer keep nothing of the other face's from being taken over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use certs::{LeafIdentity, SharedLeaf};

use crate::config::Keys;
use crate::reader::Reader;

/// How long the rest of a gateway waits for these files, which may be on a disk that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// This gateway's certificates.
pub struct Leaves {
    /// For peers.
    pub peer: Arc<Leaf>,
    /// For people.
    pub public: Arc<Leaf>,
}

/// One face's certificate, and the files that it comes from.
pub struct Leaf {
    /// What is shown now.
    pub shown: SharedLeaf,
    cert: PathBuf,
    key: PathBuf,
    reader: Reader,
}

impl Leaves {
    /// Reads this gateway's certificates.
    pub fn read(keys: &Keys) -> anyhow::Result<Leaves> {
        Ok(Leaves {
            peer: Leaf::read("the certificate for peers", &keys.peer_cert, &keys.peer_key)?,
            public: Leaf::read("the certificate for people", &keys.public_cert, &keys.public_key)?,
        })
    }
}

impl Leaf {
    fn read(what: &'static str, cert: &Path, key: &Path) -> anyhow::Result<Arc<Leaf>> {
        Ok(Arc::new(Leaf {
            shown: SharedLeaf::new(read_leaf(cert, key)?),
            cert: cert.to_owned(),
            key: key.to_owned(),
            reader: Reader::new(what),
        }))
    }

    /// Takes over what has been put in the files since; whether that is anything.
    pub async fn renew(self: &Arc<Self>) -> bool {
        self.look().await.unwrap_or(false)
    }

    /// The same for those who have more to do; whether the files were looked at. What is read later is taken over later.
    pub async fn renew_in_time(self: &Arc<Self>) -> bool {
        let is_read = matches!(tokio::time::timeout(PATIENCE, self.look()).await, Ok(Some(_)));
        if !is_read {
            let file = self.cert.display();
            tracing::warn!(%file, "the certificate stays as it was until its files can be read");
        }
        is_read
    }

    /// Whether there was anything new; `None` if nobody could look.
    async fn look(self: &Arc<Self>) -> Option<bool> {
        let leaf = Arc::clone(self);
        self.reader.read(move || leaf.take_over()).await
    }

    fn take_over(&self) -> bool {
        match read_leaf(&self.cert, &self.key) {
            Ok(read) if *self.shown.load() != read => {
                tracing::info!(file = %self.cert.display(), "certificate renewed");
                self.shown.store(Arc::new(read));
                true
            }
            Ok(_) => false,
            Err(cause) => {
                tracing::warn!(cause = format!("{cause:#}"), "the certificate stays as it was");
                false
            }
        }
    }
}

fn read_leaf(cert: &Path, key: &Path) -> anyhow::Result<LeafIdentity> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    LeafIdentity::from_pem(&read(cert)?, &read(key)?)
        .with_context(|| format!("{} and its key do not belong together", cert.display()))
}
