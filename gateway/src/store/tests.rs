use certs::MemberState;

use super::*;

fn task(number: u8) -> TaskRecord {
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

fn summary(number: u8) -> Summary {
    Summary {
        name: Some(format!("task {number}")),
        tags: BTreeMap::new(),
        payload_bytes: task(number).payload.len() as u64,
        explanation: task(number).explanation,
    }
}

fn accept(number: u8) -> Change {
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
    store.write(Change::End { job, ended: Ended::Forgotten }).await.expect("written");
    assert_eq!(store.unfinished().expect("read"), open(true, true));
    store.write(Change::Record { job, record: vec![] }).await.expect("written");
    assert_eq!(store.unfinished().expect("read"), vec![]);
    assert_eq!(store.ended(&job).expect("read"), Some(Ended::Forgotten));
}

#[tokio::test]
async fn a_sweep_takes_old_keys_and_old_ended_tasks_only() {
    let (_folder, store) = with(&[1, 2, 9]).await;
    let job = task(1).job;
    store.write(Change::End { job, ended: Ended::NeverTaken }).await.expect("written");
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
