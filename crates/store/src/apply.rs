//! What raft tells the store: committed entries, snapshots, leadership.

use bytes::Bytes;
use prost::Message as _;
use std::sync::Arc;
use swarm_api::Object;
use swarm_api::defaults::MAX_TRANSACTION_BYTES;
use swarm_api::v1::{InternalRaftRequest, StoreActionKind, StoreSnapshot};

use crate::intern::{self, Interner};
use crate::writer::{Fate, State};
use crate::{ApplyError, Error, Event, Lost, StateMachine, Store, Tables, Ticket, View, diff};

impl StateMachine for Store {
    fn apply(&self, index: u64, data: Bytes, own: Option<Ticket>) -> Result<(), ApplyError> {
        let mut state = self.state.lock();
        if let Some(ticket) = own
            && let (1, wakes) = state.commit_all(std::iter::once((index, ticket)))
        {
            drop(state);
            wakes.send();
            return Ok(());
        }
        drop(state);
        let request = decode(data);
        let mut state = self.state.lock();
        let result = request.and_then(|request| {
            let mut tables = Tables::clone(&state.view());
            let events = execute(&mut tables, request)?;
            Ok((tables, events))
        });
        let fate = match &result {
            Ok(_) => Fate::Committed(index),
            Err(error) => Fate::Failed(error.clone()),
        };
        let wakes = own.map(|ticket| state.settle(ticket, &fate));
        let result = match result {
            Ok((tables, events)) if events.is_empty() => {
                drop(tables);
                state.advance(index);
                Ok(())
            }
            Ok((tables, events)) => {
                state.publish(index, Arc::new(tables), events);
                Ok(())
            }
            Err(source) => Err(skip(&mut state, index, source)),
        };
        state.restage();
        drop(state);
        if let Some(wakes) = wakes {
            wakes.send();
        }
        result
    }

    fn apply_own(&self, entries: Vec<(u64, Bytes, Ticket)>) -> Vec<ApplyError> {
        let mut errors = Vec::new();
        let mut left = &entries[..];
        while !left.is_empty() {
            let mut state = self.state.lock();
            let (committed, wakes) =
                state.commit_all(left.iter().map(|(index, _, ticket)| (*index, *ticket)));
            drop(state);
            wakes.send();
            left = &left[committed..];
            if let Some(((index, data, ticket), rest)) = left.split_first() {
                errors.extend(self.apply(*index, data.clone(), Some(*ticket)).err());
                left = rest;
            }
        }
        errors
    }

    fn apply_all(&self, entries: Vec<(u64, Bytes)>) -> Vec<ApplyError> {
        let mut errors = Vec::new();
        let mut left = &entries[..];
        while !left.is_empty() {
            // Up to one that can't be applied, of which nothing may remain.
            let applied = self.apply_together(left);
            let fails = applied.is_err();
            let applied = applied.or_else(|fails| self.apply_together(&left[..fails])).unwrap_or(0);
            left = &left[applied..];
            if fails && let Some(((index, data), rest)) = left.split_first() {
                errors.extend(self.apply(*index, data.clone(), None).err());
                left = rest;
            }
        }
        errors
    }

    fn advance(&self, index: u64) {
        self.state.lock().advance(index);
    }

    fn lost(&self, first: Ticket, why: Lost) {
        let mut state = self.state.lock();
        let wakes = match why {
            Lost::Dropped => state.refused(first),
            Lost::LostLeadership => state.lost(first, Error::LostLeadership),
            Lost::Stopped => state.lost(first, Error::Stopped),
        };
        drop(state);
        wakes.send();
    }

    fn leadership(&self, leader: bool) {
        let wakes = self.state.lock().leadership(leader);
        wakes.send();
    }

    fn view(&self) -> View {
        Store::view(self)
    }

    fn restore(&self, index: u64, mut snapshot: StoreSnapshot) -> Result<(), Error> {
        Interner::snapshot(&mut snapshot);
        let tables = Tables::from_snapshot(snapshot)?;
        // The comparison takes its time; nobody has to wait for it, and nobody but the caller changes the view.
        let old = Store::view(self);
        let mut events = diff(&old, &tables);
        let mut state = self.state.lock();
        if state.view().sequence() != old.sequence() {
            events = diff(&state.view(), &tables);
        }
        let wakes = state.restored();
        state.divergence = None;
        state.publish(index, Arc::new(tables), events);
        drop(state);
        wakes.send();
        Ok(()) // the old tables go here, unlocked
    }
}

impl Store {
    /// Applies entries as one commit, as many as make no larger one than a transaction can, and returns how many. There is no
    /// view between them: so what several of them change is copied once.
    ///
    /// # Errors
    /// The position of an entry that can't be applied; then none was.
    fn apply_together(&self, entries: &[(u64, Bytes)]) -> Result<usize, usize> {
        // Nobody but the caller changes the view.
        let mut tables = Tables::clone(&Store::view(self));
        let mut events = Vec::new();
        let (mut applied, mut bytes) = (0, 0);
        for (_, data) in entries {
            bytes += data.len();
            if applied > 0 && bytes > MAX_TRANSACTION_BYTES {
                break;
            }
            let request = decode(data.clone()).map_err(|_| applied)?;
            events.extend(execute(&mut tables, request).map_err(|_| applied)?);
            applied += 1;
        }
        let Some((last, _)) = entries[..applied].last() else { return Ok(0) };
        let mut state = self.state.lock();
        if events.is_empty() {
            state.advance(*last);
        } else {
            state.publish(*last, Arc::new(tables), events);
            state.restage();
        }
        Ok(applied)
    }
}

/// Notes an entry that can't be applied; the log goes on behind it.
fn skip(state: &mut State, index: u64, source: Error) -> ApplyError {
    let error = ApplyError { index, source };
    tracing::error!(
        raft.index = index,
        error = %error.source,
        "a log entry can't be applied here and is skipped; the state of this manager may differ from the \
         others: remove it from the group and let it join again"
    );
    state.divergence.get_or_insert_with(|| error.clone());
    state.advance(index);
    error
}

fn decode(data: Bytes) -> Result<InternalRaftRequest, Error> {
    InternalRaftRequest::decode(data).map_err(|e| Error::Decode { what: "log entry", reason: e.to_string() })
}

/// Makes an entry's changes. After an error some of them may have been made.
fn execute(tables: &mut Tables, request: InternalRaftRequest) -> Result<Vec<Event>, Error> {
    let mut events = Vec::with_capacity(request.action.len());
    for action in request.action {
        let kind = action.action();
        let mut object = action.target.map(Object::from_target).ok_or_else(|| Error::Decode {
            what: "store action",
            reason: "it has no object of a known kind".to_owned(),
        })?;
        if let Object::Task(task) = &mut object {
            intern::task(task, tables);
        }
        events.push(match kind {
            StoreActionKind::StoreActionCreate => tables.insert(object)?,
            StoreActionKind::StoreActionUpdate => tables.replace(object)?,
            StoreActionKind::StoreActionRemove => tables.remove(object.kind(), object.id())?,
            StoreActionKind::Unknown => {
                return Err(Error::Decode {
                    what: "store action",
                    reason: format!("unknown kind {}", action.action),
                });
            }
        });
    }
    Ok(events)
}
