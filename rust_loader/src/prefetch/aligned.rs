//! Page-aligned memory that never moves: a device driver can pin it, and JAX can use it without a copy.

use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};

/// The largest page size in use (64 KiB, on some ARM systems), a multiple of all others.
pub const PAGE: usize = 65_536;

/// Bytes at an address that is a multiple of [`PAGE`].
#[derive(Debug)]
pub struct AlignedBuffer {
    /// One page more than needed, so that it contains a page boundary. Never grown: the memory does not move.
    bytes: Vec<u8>,
    offset: usize,
    length: usize,
}

impl AlignedBuffer {
    /// A buffer of `length` zeros.
    ///
    /// # Errors
    /// S007 if there is not enough memory.
    pub fn new(length: usize) -> Result<Self> {
        let no_memory = || Error::Memory { bytes: length };
        let total = length.checked_add(PAGE).ok_or_else(no_memory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(total).map_err(|_| no_memory())?;
        bytes.resize(total, 0);
        let offset = bytes.as_ptr().addr().wrapping_neg() % PAGE;
        Ok(AlignedBuffer { bytes, offset, length })
    }

    /// The address of the memory, for readers outside Rust.
    #[must_use]
    pub fn address(&self) -> usize {
        self.as_ptr().expose_provenance()
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.offset..][..self.length]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.offset..][..self.length]
    }
}
