//! Memory that begins on a page and stays where it is: a device driver can pin it, and JAX can use it as it lies.

use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};

/// The largest page in use (64 KiB, on some ARM systems), and so a whole number of every other page.
pub const PAGE: usize = 65_536;

/// Bytes at an address divisible by [`PAGE`].
#[derive(Debug)]
pub struct Buffer {
    /// A page more than needed, so that a page boundary lies in it. Never grown: the memory does not move.
    bytes: Vec<u8>,
    offset: usize,
    length: usize,
}

impl Buffer {
    /// `length` zeros, or an error if there is no memory for them.
    pub fn new(length: usize) -> Result<Self> {
        let no_memory = || Error::Memory { bytes: length };
        let total = length.checked_add(PAGE).ok_or_else(no_memory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(total).map_err(|_| no_memory())?;
        bytes.resize(total, 0);
        let offset = bytes.as_ptr().addr().wrapping_neg() % PAGE;
        Ok(Buffer { bytes, offset, length })
    }

    /// Where the memory is, for those outside Rust who read it.
    pub fn address(&self) -> usize {
        self.as_ptr().expose_provenance()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.offset..][..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.offset..][..self.length]
    }
}
