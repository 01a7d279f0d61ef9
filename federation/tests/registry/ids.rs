//! The texts of ids.

use federation::{JobId, PoolId};

use crate::world::pool;

#[test]
fn ids_have_one_text_form() {
    let id = JobId::new(0x0191_2345_6789, [0xab; 10]);
    assert_eq!(JobId::parse(&id.to_string()), Ok(id));
    assert_eq!(id.made_at_ms(), 0x0191_2345_6789);
    assert_eq!(JobId::new(u64::MAX, [255; 10]).to_string(), "job_7zzzzzzzzzzzzzzzzzzzzzzzzz");
    assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    for bad in [
        "",
        "job_",
        "job_8zzzzzzzzzzzzzzzzzzzzzzzzz",
        "job_7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "job_7zzzzzzzzzzzzzzzzzzzzzzzzi",
        "7zzzzzzzzzzzzzzzzzzzzzzzzz",
    ] {
        assert!(JobId::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(pool("h100-80").to_string(), "FI/lumi/h100-80");
    for bad in [
        "FI/lumi",
        "fi/lumi/a",
        "FI/lumi/a/b",
        "FI/Lumi/a",
        "FI/lumi/",
        "FI//a",
        "FI/lumi/-a",
        "FI/lumi/a_b",
        &format!("FI/lumi/{}", "a".repeat(32)),
    ] {
        assert!(PoolId::parse(bad).is_err(), "{bad}");
    }
    assert!(pool("a") < pool("a-b") && pool("a-b") < pool("b"));
}
