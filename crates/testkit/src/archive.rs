//! Archives of root file systems, for images.

/// What an entry is.
pub(crate) enum Kind<'a> {
    Directory,
    /// A file with its contents.
    File(&'a [u8]),
    /// A symbolic link to this path.
    Link(&'a str),
}

/// A tar archive in the ustar format (POSIX.1-1988), owned by root.
#[derive(Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    pub(crate) fn entry(&mut self, name: &str, kind: Kind<'_>, mode: u32) {
        let (flag, link, data): (u8, &str, &[u8]) = match kind {
            Kind::Directory => (b'5', "", &[]),
            Kind::File(data) => (b'0', "", data),
            Kind::Link(target) => (b'2', target, &[]),
        };
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{:011o}", data.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[flag]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
