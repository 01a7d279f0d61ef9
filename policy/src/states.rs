//! States: which of Europe's states are in the union, in the EEA, or adequate for personal data.
//!
//! Sources: Treaty on European Union, article 52; Agreement on the EEA, article 126; the
//! Commission's adequacy decisions under GDPR article 45 (and under article 25(6) of Directive
//! 95/46/EC, which article 45(9) keeps in force): AD 2010/625/EU, CH 2000/518/EC, FO 2010/146/EU,
//! GB (EU) 2021/1772, GG 2003/821/EC, IM 2004/411/EC, JE 2008/393/EC. Every other state has none
//! of the three. A change of the map is a change of this file.

use certs::MemberState;

/// The 27 member states of the European Union.
const EU: [&str; 27] = [
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV",
    "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
];
/// States of the European Economic Area outside of the union.
const EEA_ONLY: [&str; 3] = ["IS", "LI", "NO"];
/// European states and territories outside of the EEA with an adequacy decision.
const ADEQUATE: [&str; 7] = ["AD", "CH", "FO", "GB", "GG", "IM", "JE"];

/// Is it a member of the European Union?
pub fn in_eu(state: MemberState) -> bool {
    EU.contains(&state.as_str())
}

/// Is it in the European Economic Area? Every member of the union is.
pub fn in_eea(state: MemberState) -> bool {
    in_eu(state) || EEA_ONLY.contains(&state.as_str())
}

/// Is it outside of the EEA, with an adequacy decision for personal data?
pub fn adequacy(state: MemberState) -> bool {
    ADEQUATE.contains(&state.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_europe() {
        for (state, eu, eea, adequate) in [
            ("FR", true, true, false),
            ("GR", true, true, false),
            ("HR", true, true, false),
            ("NO", false, true, false),
            ("IS", false, true, false),
            ("LI", false, true, false),
            ("CH", false, false, true),
            ("GB", false, false, true),
            ("AD", false, false, true),
            ("UA", false, false, false),
            ("RS", false, false, false),
            ("RU", false, false, false),
            ("US", false, false, false),
        ] {
            let code = MemberState::parse(state).unwrap();
            assert_eq!((in_eu(code), in_eea(code), adequacy(code)), (eu, eea, adequate), "{state}");
        }
    }

    #[test]
    fn the_table_names_states_and_each_once() {
        let all: Vec<&str> = EU.into_iter().chain(EEA_ONLY).chain(ADEQUATE).collect();
        for (index, state) in all.iter().enumerate() {
            assert!(MemberState::parse(state).is_ok(), "{state}");
            assert!(!all[..index].contains(state), "{state} twice");
        }
    }
}
