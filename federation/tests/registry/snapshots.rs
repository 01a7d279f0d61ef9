//! What is stored: snapshots, and the genesis that everything begins with.

use federation::{BadGenesis, BadSnapshot, Genesis, Registry};

use crate::world::{STATES, World, federation as name, gateway_key, member, root_key, state};

#[test]
fn a_snapshot_is_read_back_or_refused() {
    let world = World::new().tell("offer 4x8; submit a 20; submit b 20; submit c 0; start a; report 4x6; pack FI");
    let bytes = world.registry.to_bytes();
    let read = Registry::from_bytes(&bytes).unwrap();
    assert_eq!(read.root(), world.registry.root());
    assert!(read.agrees_with(&world.registry));

    assert_eq!(Registry::from_bytes(&[]).unwrap_err(), BadSnapshot::Corrupt);
    let mut newer = bytes.clone();
    newer[0] = 9;
    assert_eq!(Registry::from_bytes(&newer).unwrap_err(), BadSnapshot::Format { found: 9 });
    for end in (0..bytes.len()).step_by(7) {
        assert!(Registry::from_bytes(&bytes[..end]).is_err());
    }
    // A flipped bit anywhere gives an error or another root, never a panic and never silence.
    for place in 0..bytes.len() {
        let mut doctored = bytes.clone();
        doctored[place] ^= 4;
        if let Ok(read) = Registry::from_bytes(&doctored) {
            assert_ne!(read.root(), world.registry.root(), "byte {place}");
        }
    }
}

#[test]
fn a_genesis_is_signed_by_every_founding_state() {
    let members = || STATES.iter().zip(1..).map(|(of, node)| member(of, node)).collect::<Vec<_>>();
    let draft = || Genesis::draft(name(), 1, members()).unwrap();
    let sign = |draft: federation::GenesisDraft, of: &str| draft.sign(state(of), &root_key(of)).unwrap();

    let partly = sign(sign(draft(), "FR"), "DE");
    assert_eq!(partly.clone().complete().unwrap_err(), BadGenesis::Unsigned(state("FI")));
    assert_eq!(draft().sign(state("FI"), &gateway_key("FI")).unwrap_err(), BadGenesis::BadSignature(state("FI")));
    assert_eq!(draft().sign(state("SE"), &root_key("FI")).unwrap_err(), BadGenesis::NotAMember(state("SE")));
    let complete = sign(partly, "FI").complete().unwrap();

    // The file: partly signed ones too, and nothing else passes for a genesis.
    let json = serde_json::to_string(&complete).unwrap();
    let read: Genesis = serde_json::from_str(&json).unwrap();
    assert_eq!(read.digest(), complete.digest());
    assert_eq!(Registry::from_genesis(&read).root(), Registry::from_genesis(&complete).root());
    assert!(serde_json::from_str::<Genesis>(&json.replace("\"epoch\":1", "\"epoch\":2")).is_err());
    assert!(serde_json::from_str::<Genesis>(&serde_json::to_string(&draft()).unwrap()).is_err());
    assert_eq!(
        postcard::from_bytes::<Genesis>(&postcard::to_stdvec(&complete).unwrap()).unwrap().digest(),
        complete.digest()
    );

    // Two gateways with one node id, and a state twice.
    let mut same_node = members();
    same_node[1].gateways[0].node_id = 1;
    let draft = STATES.iter().fold(Genesis::draft(name(), 1, same_node).unwrap(), |draft, of| sign(draft, of));
    assert_eq!(draft.complete().unwrap_err(), BadGenesis::Gateways(state("FI")));
    assert_eq!(
        Genesis::draft(name(), 1, vec![member("FR", 1), member("FR", 2)]).unwrap_err(),
        BadGenesis::Twice(state("FR"))
    );
    assert_eq!(Genesis::draft(name(), 1, vec![]).unwrap_err(), BadGenesis::Members);
}

#[test]
fn a_federation_of_one_is_a_federation() {
    let draft = Genesis::draft(name(), 1, vec![member("FI", 1)]).unwrap();
    let genesis = draft.sign(state("FI"), &root_key("FI")).unwrap().complete().unwrap();
    assert_eq!(Registry::from_genesis(&genesis).gateways().count(), 1);
}
