//! Workspaces and applications in memory: every request needs one of each, and they hardly ever change.
//!
//! One server process writes to the database, so what it changed itself is all that can have changed. A value that was read
//! before a change is never put in after it: filling is refused when the generation moved in between.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{PoisonError, RwLock},
};

use trainyard_core::ids::{AppId, WorkspaceId};

use crate::{apps::App, workspaces::Workspace};

/// Everything that is cached.
#[derive(Default)]
pub(crate) struct Cache {
    /// By lower-case names.
    pub(crate) workspaces_by_path: Shelf<[String; 3], Workspace>,
    pub(crate) workspaces: Shelf<WorkspaceId, Workspace>,
    pub(crate) apps: Shelf<AppId, App>,
}

/// Things of one kind by one key.
pub(crate) struct Shelf<K, V>(RwLock<Content<K, V>>);

struct Content<K, V> {
    generation: u64,
    values: HashMap<K, V>,
}

/// When a value was read that is to be put in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation(u64);

impl<K, V> Default for Shelf<K, V> {
    fn default() -> Self {
        Self(RwLock::new(Content { generation: 0, values: HashMap::new() }))
    }
}

impl<K: Eq + Hash, V: Clone> Shelf<K, V> {
    /// The value, or the generation to give back with it after reading it from the database.
    pub(crate) fn get(&self, key: &K) -> Result<V, Generation> {
        let content = self.0.read().unwrap_or_else(PoisonError::into_inner);
        content.values.get(key).cloned().ok_or(Generation(content.generation))
    }

    /// Puts in what was read from the database since `generation`.
    pub(crate) fn fill(&self, generation: Generation, key: K, value: V) {
        let mut content = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if content.generation == generation.0 {
            content.values.insert(key, value);
        }
    }

    /// Forgets everything; called after a change is committed.
    pub(crate) fn clear(&self) {
        let mut content = self.0.write().unwrap_or_else(PoisonError::into_inner);
        content.generation += 1;
        content.values.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let shelf: Shelf<u8, &str> = Shelf::default();
        let before = shelf.get(&1).unwrap_err();
        shelf.clear();
        shelf.fill(before, 1, "old");
        let after = shelf.get(&1).expect_err("the old value was refused");
        shelf.fill(after, 1, "new");
        assert_eq!(shelf.get(&1).expect("kept"), "new");
    }
}
