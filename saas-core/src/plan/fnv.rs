//! FNV-1a, 64 bits (draft-eastlake-fnv): written out because it must never change with a dependency.

#[derive(Debug, Clone, Copy)]
pub(super) struct Fnv1a(u64);

impl Fnv1a {
    pub(super) const START: Self = Self(0xcbf2_9ce4_8422_2325);

    pub(super) const fn write(&mut self, byte: u8) {
        self.0 = (self.0 ^ byte as u64).wrapping_mul(0x0100_0000_01b3);
    }

    pub(super) const fn get(self) -> u64 {
        self.0
    }
}

impl std::fmt::Write for Fnv1a {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        text.bytes().for_each(|byte| self.write(byte));
        Ok(())
    }
}
