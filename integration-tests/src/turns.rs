//! Whose turn it is: a test that measures has this machine to itself, all others share it.
//!
//! A time or a rate is asked of a gateway, not of what other tests let the machine do meanwhile. The folder of the tests'
//! programs is the lock, so that turns hold between processes too. Invariant: while a test is [`alone`], no federation and
//! no cluster of another test is there.

use std::cell::Cell;
use std::fs::File;
use std::marker::PhantomData;

thread_local! {
    /// Whether the test of this thread is alone; it starts its federations from here.
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// The machine is shared until this is dropped.
pub struct Shared {
    _lock: Option<File>,
}

/// The machine is this test's until this is dropped.
pub struct Alone {
    _lock: File,
    /// It ends on its own thread.
    _here: PhantomData<*const ()>,
}

/// Waits until nobody is alone, unless this test is.
pub fn shared() -> Shared {
    let lock = (!IS_ALONE.get()).then(|| {
        let lock = open();
        lock.lock_shared().expect("a folder to lock");
        lock
    });
    Shared { _lock: lock }
}

/// Waits until nobody shares the machine. To be called before this test starts anything.
pub fn alone() -> Alone {
    let lock = open();
    lock.lock().expect("a folder to lock");
    IS_ALONE.set(true);
    Alone { _lock: lock, _here: PhantomData }
}

impl Drop for Alone {
    fn drop(&mut self) {
        IS_ALONE.set(false);
    }
}

fn open() -> File {
    let program = std::env::current_exe().expect("a test knows its own file");
    File::open(program.parent().expect("a folder")).expect("the folder of this program")
}
