//! Reads and writes at a position of a file. On Windows they also move the file's cursor.

#[cfg(unix)]
pub(crate) use std::os::unix::fs::FileExt;

#[cfg(windows)]
pub(crate) use windows::FileExt;

#[cfg(windows)]
mod windows {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt as WindowsFileExt;

    /// The two methods of Unix that this crate uses.
    pub(crate) trait FileExt {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
        fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()>;
    }

    impl FileExt for File {
        fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
            while !buffer.is_empty() {
                let count = self.seek_read(buffer, offset)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Ok(())
        }

        fn write_all_at(&self, mut buffer: &[u8], mut offset: u64) -> io::Result<()> {
            while !buffer.is_empty() {
                let count = self.seek_write(buffer, offset)?;
                if count == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                buffer = &buffer[count..];
                offset += count as u64;
            }
            Ok(())
        }
    }
}
