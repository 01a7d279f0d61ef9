//! Bugs that are planted, so that each invariant is seen to find what it is there for.
//!
//! Two tamper with what the audit sees of the registry, because `apply` itself would have to be wrong; all others are
//! mistakes of a gateway or of its driver.
//! Invariant: each changes one thing, and nothing where it is not planted.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The audit sees a granted attempt's GPUs twice.
    ViewCountsGrantsTwice,
    /// The audit sees a job's first attempt as never ended.
    ViewReopensAttempts,
    /// Home says yes although it does not know what became of the proposal.
    HomeAcknowledgesUnknown,
    /// Home's disk says that a task is written before it is.
    HomeDoesNotSync,
    /// Home keeps keys of submissions in memory only.
    HomeKeepsKeysInMemory,
    /// Home hands a task over without asking its own pack once more.
    HomeGivesUnasked,
    /// Host starts what it was granted without asking its own pack.
    HostDoesNotDecide,
    /// Host takes a committed `Start` for a permission, also after it was restarted.
    HostDecidesOnlyOnce,
    /// Host hands over what it has the order for, whatever happened while that came.
    HostHandsOverUnlooked,
    /// Host declines what its driver has, when its pack has moved, and does not stop it first.
    HostDeclinesUnstopped,
    /// Host says how an attempt ended, and not that it ran.
    HostSkipsRun,
    /// Host thinks that a duty is done when nobody answered.
    HostForgetsUnanswered,
    /// The driver lets what must not run twice go on without a lease.
    DriverIgnoresLeases,
    /// Host renews leases when it has made a report, whether or not that was committed.
    HostRenewsUncommitted,
    /// The driver's table of attempts loses what was entered last when the machine stops.
    DriverDoesNotSync,
    /// A replica notes that it has applied an entry before it has, and is stopped in between.
    ReplicaSkipsEntry,
}
