use certs::{GatewayName, MemberState};
use federation::{Attempt, End, Grant, JobState, PoolId, Reason, Revision, Shape};
use policy::{DataClass, Labels, Purpose};

use super::*;

pub fn task(number: u8) -> TaskRecord {
    TaskRecord {
        job: JobId::new(u64::from(number), [number; 10]),
        owner: Pseudonym([7; 16]),
        created_at: Timestamp(u64::from(number)),
        payload: br#"{"executors":[]}"#.to_vec(),
        warnings: vec!["dropped VmSize".into()],
        researcher: ResearcherFacts {
            home: MemberState::parse("FR").expect("a state"),
            assurance: 1,
            entitlements: vec![],
            clearances: vec![],
            residency: None,
        },
        explanation: Digest::of(b"verdicts"),
    }
}

pub fn summary(number: u8) -> Summary {
    Summary {
        name: Some(format!("task {number}")),
        tags: BTreeMap::new(),
        payload_bytes: task(number).payload.len() as u64,
        explanation: task(number).explanation,
    }
}

pub fn accept(number: u8) -> Change {
    let task = task(number);
    let (at, until) = (task.created_at, Timestamp(task.created_at.0 + 100));
    let remembered = RememberedKey { body: Digest::of(&task.payload), job: task.job, face: "/v1".into(), at, until };
    Change::Accept {
        keys: vec![(vec![number], remembered)],
        summary: summary(number),
        again: false,
        task: Box::new(task),
        explanation: Arc::from(&b"verdicts"[..]),
    }
}

/// The same task once more, a second later.
pub fn accept_again(number: u8) -> Change {
    let Change::Accept { mut task, summary, keys, explanation, .. } = accept(number) else { unreachable!() };
    task.created_at.0 += 1_000;
    Change::Accept { task, summary, again: true, keys, explanation }
}

/// As a disk leaves it that has lost some bytes of it.
pub fn spoil_end(store: &Store, job: &JobId) {
    let write = store.database.begin_write().expect("a transaction");
    let mut ended = write.open_table(ENDED).expect("a table");
    ended.insert(job.to_string().as_bytes(), &b"spoiled"[..]).expect("written");
    drop(ended);
    write.commit().expect("written");
}

/// What the registry never took, as of the first try.
fn give_up(number: u8) -> Change {
    Change::GiveUp { job: task(number).job, created_at: task(number).created_at, taken: false }
}

/// The task as the registry holds it when FR/fr-2 has lost it.
pub fn lost(number: u8) -> Job {
    let task = task(number);
    let pool = PoolId::parse("FR/paris/main").expect("a pool");
    let end = End::Lost { reason: Reason::new("the host forgot it") };
    let attempt = Attempt {
        number: 1,
        pool,
        served_by: GatewayName::parse("fr-2").expect("a name"),
        leased: false,
        grant: Grant { gpus: 0, nodes: vec![] },
        granted_at: Revision(2),
        started_at: None,
        running_at: None,
        ended_at: Some(Timestamp(9)),
        declined: None,
        below: None,
        end: Some(end.clone()),
        gpu_seconds: 0,
    };
    Job {
        id: task.job,
        home: pool.state(),
        home_gateway: GatewayName::parse("fr-2").expect("a name"),
        pseudonym: task.owner,
        shape: Shape {
            gpus: 0,
            nodes: 0,
            model: None,
            memory_gib_min: 0,
            walltime_s: 60,
            cpu_cores: 1,
            ram_gib: 1,
            disk_gib: 1,
        },
        labels: Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None },
        payload: Digest::of(&task.payload),
        priority: 0,
        restartable: false,
        exclusive: false,
        candidates: vec![pool.into()],
        decided_on: vec![],
        decided_at: Revision(1),
        state: JobState::Failed,
        cancel_requested: false,
        attempts: vec![attempt],
        end: Some(end),
        passed_over: 0,
        reserved: None,
        submitted_at: Revision(1),
        submitted: task.created_at,
        changed_at: Revision(3),
    }
}

async fn with(numbers: &[u8]) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(folder.path()).await.expect("a store");
    for number in numbers {
        store.write(accept(*number)).await.expect("written");
    }
    (folder, store)
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let (folder, store) = with(&[1, 2, 3]).await;
    // The writer thread closes the file shortly after the last handle is gone.
    drop(store);
    let store = Store::open(folder.path()).await.expect("a store");
    assert_eq!(store.task(&task(2).job).expect("read"), Some(task(2)));
    let found = store.key(&[3]).expect("read").expect("a key");
    assert_eq!(found.job, task(3).job);
    let verdicts = store.explanation(&task(1).explanation).expect("read");
    assert_eq!(verdicts.as_deref(), Some(&b"verdicts"[..]));
}

#[tokio::test]
async fn an_owner_sees_the_newest_first_and_pages() {
    let (_folder, store) = with(&[1, 2, 3, 4, 5]).await;
    let owner = Pseudonym([7; 16]);
    let shown = |number| (task(number).job, summary(number));
    let page = store.tasks_of(&owner, None, 2).expect("read");
    assert_eq!(page, vec![shown(5), shown(4)]);
    let page = store.tasks_of(&owner, Some(&page[1].0), 9).expect("read");
    assert_eq!(page, vec![shown(3), shown(2), shown(1)]);
    let other = Pseudonym([8; 16]);
    assert_eq!(store.tasks_of(&other, None, 9).expect("read"), vec![]);
}

#[tokio::test]
async fn a_forgotten_submission_leaves_nothing() {
    let (_folder, store) = with(&[1]).await;
    let forget = Change::Forget { job: task(1).job, owner: task(1).owner, keys: vec![vec![1]] };
    store.write(forget).await.expect("written");
    assert_eq!(store.task(&task(1).job).expect("read"), None);
    assert_eq!(store.key(&[1]).expect("read"), None);
    assert_eq!(store.explanation(&task(1).explanation).expect("read"), None);
    assert!(store.unfinished().expect("read").is_empty());
}

#[tokio::test]
async fn a_second_try_that_was_decided_otherwise_leaves_nothing_of_the_first() {
    let (_folder, store) = with(&[1]).await;
    let Change::Accept { task: mut second, summary, keys, .. } = accept(1) else { unreachable!() };
    second.explanation = Digest::of(b"other verdicts");
    let again = Change::Accept {
        summary: Summary { explanation: second.explanation, ..summary },
        again: true,
        task: second.clone(),
        keys,
        explanation: Arc::from(&b"other verdicts"[..]),
    };
    store.write(again).await.expect("written");
    assert_eq!(store.explanation(&task(1).explanation).expect("read"), None);
    let verdicts = store.explanation(&second.explanation).expect("read");
    assert_eq!(verdicts.as_deref(), Some(&b"other verdicts"[..]));
    assert_eq!(store.task(&second.job).expect("read"), Some(*second));
    assert!(store.key(&[1]).expect("read").is_some());
}

#[tokio::test]
async fn a_task_is_unfinished_until_its_record_is_there() {
    let (_folder, store) = with(&[1]).await;
    let job = task(1).job;
    let open =
        |taken, ended| vec![Unfinished { job, owner: task(1).owner, bytes: summary(1).payload_bytes, taken, ended }];
    assert_eq!(store.unfinished().expect("read"), open(false, false));
    store.write(Change::Taken(vec![job])).await.expect("written");
    assert_eq!(store.unfinished().expect("read"), open(true, false));
    store.write(Change::End(Box::new(lost(1)))).await.expect("written");
    assert_eq!(store.unfinished().expect("read"), open(true, true));
    store.write(Change::Record { job, record: vec![] }).await.expect("written");
    assert_eq!(store.unfinished().expect("read"), vec![]);
    assert_eq!(store.ended(&job).expect("read"), Some(Ended::Job(Box::new(lost(1)))));
}

#[tokio::test]
async fn a_try_that_came_to_nothing_ends_no_later_one() {
    let (_folder, store) = with(&[1, 2]).await;
    let (first, second) = (task(1).job, task(2).job);
    store.write(accept_again(1)).await.expect("written");
    store.write(give_up(1)).await.expect("written");
    assert_eq!(store.ended(&first).expect("read"), None, "the second try may be on its way");
    assert_eq!(store.record(&first).expect("read"), None);
    store.write(give_up(2)).await.expect("written");
    assert_eq!(store.ended(&second).expect("read"), Some(Ended::NeverTaken));
    assert_eq!(store.record(&second).expect("read").as_deref(), Some(&b""[..]), "nothing will come");
    let open: Vec<_> = store.unfinished().expect("read").iter().map(|it| it.job).collect();
    assert_eq!(open, [first]);

    let created_at = Timestamp(task(1).created_at.0 + 1_000);
    store.write(Change::End(Box::new(lost(1)))).await.expect("written");
    store.write(Change::GiveUp { job: first, created_at, taken: true }).await.expect("written");
    assert_eq!(store.ended(&first).expect("read"), Some(Ended::Job(Box::new(lost(1)))), "it has ended already");
    assert_eq!(store.record(&first).expect("read"), None, "its host may still give one");
    let unknown = Change::GiveUp { job: task(3).job, created_at: task(3).created_at, taken: false };
    store.write(unknown).await.expect("written");
    assert_eq!(store.ended(&task(3).job).expect("read"), None);
}

#[tokio::test]
async fn a_record_stays_and_belongs_to_a_task_that_has_ended() {
    let (_folder, store) = with(&[1]).await;
    let job = task(1).job;
    let ended = || Change::End(Box::new(lost(1)));
    let record = |record: &[u8]| Change::Record { job, record: record.to_vec() };
    store.write(record(b"{}")).await.expect("written");
    assert_eq!(store.record(&job).expect("read"), None, "an open task has none");

    store.write(ended()).await.expect("written");
    store.write(record(b"")).await.expect("written");
    assert_eq!(store.record(&job).expect("read").as_deref(), Some(&b""[..]));
    store.write(record(b"{}")).await.expect("written");
    store.write(record(b"")).await.expect("written");
    assert_eq!(store.record(&job).expect("read").as_deref(), Some(&b"{}"[..]), "the host has forgotten it since");

    // It ended just when it was submitted again.
    store.write(accept_again(1)).await.expect("written");
    assert_eq!(store.ended(&job).expect("read"), Some(Ended::Job(Box::new(lost(1)))));
    assert_eq!(store.record(&job).expect("read").as_deref(), Some(&b"{}"[..]));
}

#[tokio::test]
async fn a_task_that_was_given_up_and_is_accepted_again_is_open() {
    let (_folder, store) = with(&[1]).await;
    let job = task(1).job;
    store.write(give_up(1)).await.expect("written");
    store.write(accept_again(1)).await.expect("written");
    store.write(Change::Record { job, record: b"{}".to_vec() }).await.expect("written");
    assert_eq!(store.ended(&job).expect("read"), None);
    assert_eq!(store.record(&job).expect("read"), None, "of an earlier try");
    assert_eq!(store.unfinished().expect("read").len(), 1);
}

#[tokio::test]
async fn a_sweep_takes_old_keys_and_old_ended_tasks_only() {
    let (_folder, store) = with(&[1, 2, 9]).await;
    let job = task(1).job;
    store.write(give_up(1)).await.expect("written");
    let sweep = |now, tasks_before| {
        let (now, tasks_before) = (Timestamp(now), Timestamp(tasks_before));
        Change::Sweep { now, tasks_before, more: Arc::default() }
    };
    store.write(sweep(105, 0)).await.expect("written");
    let keys = [1, 2, 9].map(|number| store.key(&[number]).expect("read").is_some());
    assert_eq!(keys, [false, false, true], "keys end after 100 ms");
    assert!(store.task(&job).expect("read").is_some(), "kept as long as tasks are kept");

    let remembered = store.key(&[9]).expect("read").expect("a key");
    let again = RememberedKey { until: Timestamp(500), ..remembered };
    let mut other = accept(8);
    if let Change::Accept { keys, .. } = &mut other {
        *keys = vec![(vec![9], again)];
    }
    store.write(other).await.expect("written");
    store.write(sweep(110, 0)).await.expect("written");
    assert!(store.key(&[9]).expect("read").is_some(), "a key that was used again counts on");

    store.write(sweep(105, 5)).await.expect("written");
    let tasks = [1, 2, 9].map(|number| store.task(&task(number).job).expect("read").is_some());
    assert_eq!(tasks, [false, true, true], "an open task stays, however old");
    assert!(store.explanation(&task(2).explanation).expect("read").is_some(), "others refer to it");
}

#[tokio::test]
async fn one_process_has_it_at_a_time() {
    let (folder, _store) = with(&[]).await;
    assert!(matches!(Store::try_open(folder.path()), Err(StoreFailed::InUse)));
}

/// What a repeated submission goes by when the registry has forgotten the job.
#[tokio::test]
async fn what_the_registry_was_seen_to_hold_is_known_until_the_task_is_forgotten() {
    let (_folder, store) = with(&[1, 2]).await;
    let [seen, other] = [1, 2].map(|number| task(number).job);
    assert!(!store.is_taken(&seen).expect("read"));
    store.write(Change::Taken(vec![seen])).await.expect("written");
    let forgotten = Change::GiveUp { job: seen, created_at: task(1).created_at, taken: true };
    store.write(forgotten).await.expect("written");
    assert!(store.is_taken(&seen).expect("read") && !store.is_taken(&other).expect("read"));
    store.write(Change::Forget { job: seen, owner: task(1).owner, keys: vec![] }).await.expect("written");
    assert!(!store.is_taken(&seen).expect("read"));
}
