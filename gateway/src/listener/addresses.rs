//! Addresses: how many connections each has, so that one client cannot take them all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

/// Connections by address. An IPv6 client has a whole /64, so that is what counts as one.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    addresses: Addresses,
    network: IpAddr,
}

impl Addresses {
    /// A place for one more connection of this address, if it has fewer than `limit`.
    pub fn place(&self, address: IpAddr, limit: usize) -> Option<Place> {
        let network = network(address);
        let mut taken = self.lock();
        let count = taken.entry(network).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { addresses: self.clone(), network })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().expect("invariant: nothing panics while it holds the addresses")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.addresses.lock();
        if let Some(count) = taken.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.network);
            }
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let upper_half = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(upper_half))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_places_back() {
        let addresses = Addresses::default();
        let place = |text: &str| addresses.place(text.parse().expect("an address"), 2);
        let first = place("192.0.2.1").expect("room");
        let _second = place("::ffff:192.0.2.1").expect("the same address has room for two");
        assert!(place("192.0.2.1").is_none());
        let _other = place("192.0.2.2").expect("another address");
        drop(first);
        let _again = place("192.0.2.1").expect("room again");
        let _six = [place("2001:db8::1"), place("2001:db8::2")].map(|it| it.expect("room"));
        assert!(place("2001:db8::3").is_none(), "one /64 is one client");
        assert!(place("2001:db8:0:1::1").is_some());
    }
}
