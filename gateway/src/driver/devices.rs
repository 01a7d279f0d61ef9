//! Device numbers: which GPUs of the machine an attempt may use.
//! Invariant: a number is in at most one attempt that is not done, over all pools of the gateway.

use std::collections::BTreeSet;
use std::ops::Range;

/// The numbers of one pool: consecutive, node after node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Devices {
    pub first: u32,
    pub nodes: u32,
    pub per_node: u32,
}

impl Devices {
    /// Chooses `gpus` numbers that nobody holds, evenly over `nodes` nodes (0: as few as possible).
    ///
    /// The registry counts which gangs fit; this only names devices. Nodes of one machine are an
    /// arrangement on paper, so a gang that no longer fits the nodes as they are held gets what is free.
    /// `Err` is the number of free devices, which are too few.
    pub fn assign(&self, held: &BTreeSet<u32>, gpus: u32, nodes: u32) -> Result<Vec<u32>, u32> {
        let free_of = |node: u32| -> Vec<u32> { self.node(node).filter(|number| !held.contains(number)).collect() };
        let spread = match nodes {
            0 if gpus <= self.per_node => 1,
            0 => gpus.div_ceil(self.per_node.max(1)),
            nodes => nodes,
        };
        let each = gpus.div_ceil(spread);
        let mut fitting: Vec<Vec<u32>> =
            (0..self.nodes).map(free_of).filter(|free| free.len() >= each as usize).collect();
        // The fullest nodes that fit, so that large gaps stay.
        fitting.sort_by_key(Vec::len);
        let mut chosen: Vec<u32> = fitting
            .iter()
            .take(spread as usize)
            .flat_map(|free| free.iter().copied().take(each as usize))
            .take(gpus as usize)
            .collect();
        if chosen.len() < gpus as usize {
            chosen = (0..self.nodes).flat_map(free_of).take(gpus as usize).collect();
        }
        chosen.sort_unstable();
        if chosen.len() == gpus as usize { Ok(chosen) } else { Err(chosen.len() as u32) }
    }

    fn node(&self, node: u32) -> Range<u32> {
        let first = self.first + node * self.per_node;
        first..first + self.per_node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(held: &[u32], gpus: u32, nodes: u32) -> Result<Vec<u32>, u32> {
        let devices = Devices { first: 100, nodes: 3, per_node: 4 };
        devices.assign(&held.iter().copied().collect(), gpus, nodes)
    }

    #[test]
    fn devices_are_free_and_on_as_few_nodes_as_possible() {
        assert_eq!(check(&[], 2, 0), Ok(vec![100, 101]));
        assert_eq!(check(&[104, 105], 2, 0), Ok(vec![106, 107]), "the fullest node");
        assert_eq!(check(&[100], 4, 0), Ok(vec![104, 105, 106, 107]));
        assert_eq!(check(&[], 4, 2), Ok(vec![100, 101, 104, 105]));
        assert_eq!(check(&[], 6, 0), Ok(vec![100, 101, 102, 104, 105, 106]));
        assert_eq!(check(&[100, 104, 108], 4, 0), Ok(vec![101, 102, 103, 105]), "scattered");
        assert_eq!(check(&[], 0, 0), Ok(vec![]));
        assert_eq!(check(&[100, 104, 108], 10, 0), Err(9));
    }
}
