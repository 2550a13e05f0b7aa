//! `ioasid graph`: who maps what for which devices, in four columns: users, address spaces, domains,
//! devices. A line from a domain to a device is a route; it ends at the device itself, or at the PASID
//! that it is for. Guests' own tables, if there are any, are a column between domains and devices.

pub(crate) mod dot;
pub(crate) mod svg;

use std::collections::BTreeMap;

use super::{
    screen::bytes,
    seen::{Domain, Mdev, Route, Seen},
};

/// What is drawn. Boxes are in the order from top to bottom; lines are pairs of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Graph {
    /// Programs, virtual machines, the host's own drivers.
    pub(crate) users: Vec<Block>,
    /// IOASes, and the DMA API of drivers.
    pub(crate) spaces: Vec<Block>,
    pub(crate) domains: Vec<Block>,
    /// Domains that are nested on others.
    pub(crate) nested: Vec<Block>,
    pub(crate) devices: Vec<Block>,
    /// From a user to a space.
    pub(crate) uses: Vec<(usize, usize)>,
    /// From a space to a domain.
    pub(crate) tables: Vec<(usize, usize)>,
    /// From a domain to one that is nested on it.
    pub(crate) stages: Vec<(usize, usize)>,
    /// From a domain to a line of a device.
    pub(crate) routes: Vec<(usize, (usize, usize))>,
    /// From a nested domain to a line of a device.
    pub(crate) nested_routes: Vec<(usize, (usize, usize))>,
}

/// A box.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    /// The first line.
    pub(crate) title: String,
    /// The others.
    pub(crate) lines: Vec<String>,
}

impl Block {
    fn new(title: String, lines: impl IntoIterator<Item = String>) -> Block {
        let lines = lines.into_iter().collect();
        Block { title, lines }
    }
}

impl Graph {
    /// The graph of a machine. Domains without a page table, which every device has, are left out.
    pub(crate) fn new(seen: &Seen) -> Graph {
        let mut graph = Graph::default();
        let places = graph.add_devices(seen);
        for (index, domain) in seen.paging().into_iter().enumerate() {
            let title = format!("domain {}", domain.id);
            let mapped = format!("{} mapped", bytes(domain.mapped_bytes));
            graph
                .domains
                .push(Block::new(title, [domain.kind.clone(), mapped]));
            let ends = domain.routes.iter().filter_map(|route| places.get(route));
            graph.routes.extend(ends.map(|end| (index, *end)));
            graph.add_spaces(seen, index, domain);
            for nested in seen.nested_on(domain) {
                let title = format!("domain {}", nested.id);
                let table = nested.first_stage.map(|table| table.to_string());
                let lines = [nested.kind.clone()].into_iter().chain(table);
                let number = graph.nested.len();
                graph.nested.push(Block::new(title, lines));
                graph.stages.push((index, number));
                let ends = nested.routes.iter().filter_map(|route| places.get(route));
                graph.nested_routes.extend(ends.map(|end| (number, *end)));
            }
        }
        graph
    }

    /// A box for each device, with a line for each PASID that is in use or that a child of it would have.
    /// Where each source of DMA is.
    fn add_devices(&mut self, seen: &Seen) -> BTreeMap<Route, (usize, usize)> {
        let mut places = BTreeMap::new();
        for (index, device) in seen.devices.iter().enumerate() {
            let mut lines = Vec::new();
            let mut vm = String::new();
            if let Some(name) = &device.vm {
                vm = format!(" ({name})");
            }
            lines.push(format!("{}, driver {}{vm}", device.model, device.driver));
            let source = |pasid| Route {
                device: device.address.clone(),
                pasid,
            };
            // The line of the title.
            places.insert(source(None), (index, 0));
            for mdev in seen
                .mdevs
                .iter()
                .filter(|mdev| mdev.parent == device.address)
            {
                lines.push(child(mdev));
                if let Some(pasid) = mdev.default_pasid() {
                    places.insert(source(Some(pasid)), (index, lines.len()));
                }
            }
            let routes = seen.iommu.domains.iter().flat_map(|domain| &domain.routes);
            for route in routes.filter(|route| route.device == device.address) {
                if let (Some(pasid), false) = (route.pasid, places.contains_key(route)) {
                    lines.push(format!("PASID {pasid}"));
                    places.insert(route.clone(), (index, lines.len()));
                }
            }
            self.devices.push(Block::new(device.address.clone(), lines));
        }
        places
    }

    /// The address spaces behind a domain, and who uses them.
    fn add_spaces(&mut self, seen: &Seen, domain_index: usize, domain: &Domain) {
        if domain.kind == "dma" {
            let addresses: Vec<_> = domain.routes.iter().map(|r| r.device.clone()).collect();
            let drivers = seen
                .devices
                .iter()
                .filter(|d| addresses.contains(&d.address));
            let drivers: Vec<_> = drivers.map(|d| format!("driver {}", d.driver)).collect();
            let user = self.user(Block::new(
                drivers.join(", "),
                ["the host's own".to_owned()],
            ));
            let lines = ["IOVAs of the driver".to_owned()];
            self.connect(user, Block::new("DMA API".to_owned(), lines), domain_index);
            return;
        }
        for (number, iommufd) in seen.iommufds.iter().enumerate() {
            for ioas in &iommufd.ioas {
                if !ioas.domain_ids.contains(&domain.id) {
                    continue;
                }
                let user = match seen.owner(iommufd) {
                    Some(user) => Block::new(user.to_string(), user.vm),
                    None => Block::new(format!("open /dev/iommu {number}"), []),
                };
                let areas = match ioas.areas {
                    1 => "1 area".to_owned(),
                    areas => format!("{areas} areas"),
                };
                let lines = [format!("{areas}, {}", bytes(ioas.mapped_bytes))];
                let user = self.user(user);
                self.connect(
                    user,
                    Block::new(format!("IOAS {}", ioas.id), lines),
                    domain_index,
                );
            }
        }
    }

    /// The number of the box of a user.
    fn user(&mut self, user: Block) -> usize {
        let known = self.users.iter().position(|known| *known == user);
        known.unwrap_or_else(|| {
            self.users.push(user);
            self.users.len() - 1
        })
    }

    /// Draws a line from `user` through `space` to a domain. The same space of the same user is one box.
    fn connect(&mut self, user: usize, space: Block, domain: usize) {
        let mut uses = self.uses.iter();
        let known = uses.find(|(known, index)| *known == user && self.spaces[*index] == space);
        let index = match known {
            Some((_, index)) => *index,
            None => {
                self.spaces.push(space);
                self.uses.push((user, self.spaces.len() - 1));
                self.spaces.len() - 1
            }
        };
        self.tables.push((index, domain));
    }
}

/// The line of a mediated device in the box of its parent.
fn child(mdev: &Mdev) -> String {
    let what = match mdev.queue() {
        Some(queue) => format!("queue {queue}"),
        None => mdev.type_name.clone(),
    };
    let vm = mdev
        .vm
        .as_ref()
        .map_or(String::new(), |vm| format!(" ({vm})"));
    match mdev.default_pasid() {
        Some(pasid) => format!("PASID {pasid}: {what}{vm}"),
        None => format!("{what}{vm}: not in use"),
    }
}
