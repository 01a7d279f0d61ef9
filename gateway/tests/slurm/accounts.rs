//! Who may run here, and how the gateway proves for whom it speaks.

use std::time::Duration;

use certs::MemberState;
use federation::{End, Pseudonym};
use gateway::driver::{DriverError, LocalName, TokenSource};

use super::bench::{USUAL, on, pool, sh};

#[test]
fn whoever_is_not_mapped_is_refused_and_told_why() {
    on(USUAL, async |bench| {
        let mut order = sh("id -un");
        order.researcher.home = MemberState::parse("DE").expect("a state");
        let reason = bench.driver().check(&order).expect_err("nobody's account");
        assert_eq!(reason, "this factory has no local account for the researcher: its operator can map one");
        match bench.driver().submit(order.clone()).await {
            Err(DriverError::Refused(same)) => assert_eq!(same.as_str(), reason),
            other => panic!("{other:?}"),
        }
        order.researcher.home = MemberState::parse("SE").expect("a state");
        let unprepared = bench.driver().check(&order);
        assert!(unprepared.is_err_and(|it| it.contains("has not prepared a folder")));
        order.researcher.pseudonym = Pseudonym([2; 16]);
        let (end, record) = bench.run(order).await;
        assert_eq!((end, record.executors[0].stdout.as_str()), (End::Complete, "ent-bob\n"), "{record:?}");
    });
}

#[test]
fn a_mapping_is_read_again_when_it_changes_and_kept_when_it_is_wrong() {
    on(USUAL, async |bench| {
        let mut order = sh("id -un");
        order.researcher.home = MemberState::parse("DE").expect("a state");
        assert!(bench.driver().check(&order).is_err());
        let path = bench.settings.accounts.clone();
        let text = std::fs::read_to_string(&path).expect("a mapping");
        std::fs::write(&path, format!("{text}\n[[rule]]\nhome = \"DE\"\nuser = \"ent-bob\"\n")).expect("a file");
        bench.until("the mapping is read", |it| it.driver().check(&order).is_ok()).await;
        std::fs::write(&path, "[[rule]]\nhome = \"DE\"\nuser = \"root\"\n").expect("a file");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (_, record) = bench.run(order).await;
        assert_eq!(record.executors[0].stdout, "ent-bob\n", "{record:?}");
    });
}

#[test]
fn a_token_that_ends_is_replaced_before_it_does() {
    on(USUAL, async |bench| {
        let TokenSource::Command(words) = &bench.settings.tokens else { panic!("a command") };
        let line = format!("exec {} \"$0\" 4", words.join(" "));
        bench.settings.tokens = TokenSource::Command(vec!["/bin/sh".into(), "-c".into(), line]);
        bench.restart().await;
        let end = std::time::Instant::now() + Duration::from_secs(15);
        while std::time::Instant::now() < end {
            let (end, record) = bench.run(sh("true")).await;
            assert_eq!(end, End::Complete, "{record:?}");
        }
        assert_eq!(bench.driver().capacity(&pool()).expect("a report").problem, None);
    });
}

#[test]
fn a_gateway_without_a_token_lends_nothing_and_says_so() {
    on(USUAL, async |bench| {
        let good = bench.settings.tokens.clone();
        bench.settings.tokens = TokenSource::Command(vec!["/bin/false".into()]);
        bench.restart().await;
        let report = bench.driver().capacity(&pool()).expect("a report");
        assert_eq!(report.problem.as_deref(), Some("the gateway cannot prove to Slurm who it is"));
        let job = bench.submit(sh("true")).await;
        bench.settings.tokens = good;
        bench.restart().await;
        assert_eq!(bench.done(job).await.0, End::Complete, "it waited");
    });
}

#[test]
fn a_socket_needs_no_token_and_serves_one_account() {
    on(USUAL, async |bench| {
        let socket = bench.cluster.path().join("run/socket/rest.sock");
        // slurmrestd's own account alone may enter, and root; the driver's threads are neither for files.
        let folder = socket.parent().expect("a folder");
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
        std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("a mode");
        bench.settings.url = format!("unix:{}", socket.display());
        bench.settings.tokens = TokenSource::Socket;
        bench.settings.reader = LocalName::parse("ent-alice").expect("a name");
        bench.restart().await;
        bench.lends(pool(), "4x2").await;
        let (end, record) = bench.run(sh("id -un")).await;
        assert_eq!((end, record.executors[0].stdout.as_str()), (End::Complete, "ent-alice\n"), "{record:?}");
        let mut other = sh("true");
        other.researcher.pseudonym = Pseudonym([2; 16]);
        assert!(bench.driver().check(&other).is_err_and(|it| it.contains("one local account only")));
    });
}
