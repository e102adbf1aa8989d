//! Subnets in CIDR notation.

use std::net::IpAddr;

/// An address and the number of bits that its network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet {
    address: IpAddr,
    bits: u8,
}

impl Subnet {
    /// Reads `address/bits`; host bits may be set.
    pub(crate) fn parse(text: &str) -> Option<Subnet> {
        let (address, bits) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Subnet { address, bits })
    }

    /// The address as written.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// The address is in the network; never for one of the other family.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let prefix = |number: u128, width: u32| number.checked_shr(width - u32::from(self.bits)).unwrap_or(0);
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                prefix(u32::from(own).into(), 32) == prefix(u32::from(other).into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => prefix(own.into(), 128) == prefix(other.into(), 128),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_contain_their_addresses() {
        let check = |subnet: &str, address: &str, inside: bool| {
            let subnet = Subnet::parse(subnet).unwrap();
            assert_eq!(subnet.contains(address.parse().unwrap()), inside, "{subnet:?} {address}");
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.0", false);
        check("10.0.0.7/31", "10.0.0.6", true);
        check("0.0.0.0/0", "255.1.2.3", true);
        check("fd00::/8", "fdff::1", true);
        check("::/0", "1::", true);
        check("fd00::/8", "10.0.0.1", false);
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "::/129", "x/8"] {
            assert_eq!(Subnet::parse(bad), None, "{bad}");
        }
    }
}
