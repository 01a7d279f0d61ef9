//! Reasons that people read are short, whoever wrote them.

use certs::Envelope;
use federation::{Batch, Command, JobId, Outcome, Reason, Rejection, Revision, Timestamp, Verdict, limits};

use crate::world::{World, gateway_key, header};

#[test]
fn our_own_reasons_are_shortened() {
    let cut = |text: &str| Reason::new(text).as_str().to_owned();
    assert_eq!(cut("no room"), "no room");
    assert_eq!(cut("two\nlines\tand\u{1b}[31m"), "two lines and [31m");
    assert_eq!(cut(&"x".repeat(500)).len(), limits::REASON_BYTES_MAX);
    // 66 characters of three bytes are 198; the next one would be cut in two.
    assert_eq!(cut(&"\u{20ac}".repeat(100)), "\u{20ac}".repeat(66));
}

#[test]
fn a_reason_that_somebody_sends_is_one_or_is_refused() {
    let sent = |text: &str| postcard::from_bytes::<Reason>(&postcard::to_stdvec(text).unwrap());
    assert_eq!(sent("no room").unwrap(), Reason::new("no room"));
    assert!(sent(&"x".repeat(limits::REASON_BYTES_MAX)).is_ok());
    assert!(sent(&"x".repeat(limits::REASON_BYTES_MAX + 1)).is_err());
    assert!(sent("two\nlines").is_err());
    assert!(serde_json::from_str::<Reason>("\"a\\u0007b\"").is_err());
    assert_eq!(serde_json::to_string(&Reason::new("no")).unwrap(), "\"no\"");
}

#[test]
fn an_envelope_with_too_long_a_reason_is_refused() {
    let mut world = World::new().tell("offer 8; submit a 8");
    let decline =
        |job: JobId| Command::Decline { job, attempt: 1, reason: Reason::new("?"), below: None, at: Timestamp(1) };
    let sound = Batch(vec![decline(world.jobs["a"])]).to_bytes();
    // The same bytes with 201 of `?` where one was: the length is a varint of two bytes.
    let place = sound.windows(2).position(|pair| pair == [1, b'?']).unwrap();
    let mut long = sound[..place].to_vec();
    long.extend([201 & 0x7f | 0x80, 1]);
    long.extend([b'?'; 201]);
    long.extend(&sound[place + 2..]);
    let envelope = Envelope::seal(header("FI", 50), &long, &gateway_key("FI")).unwrap();
    let next = Revision(world.registry.revision().0 + 1);
    let outcomes = world.registry.apply(next, &envelope, Verdict::Unknown);
    assert_eq!(outcomes, vec![Outcome::Rejected(Rejection::Undecodable)]);
    world.expect("a GRANTED main 8");
}
