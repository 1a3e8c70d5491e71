//! The host's page size: 4, 16 or 64 KiB, the least that the host maps or takes back. Not here: the guest's page size.

/// Bytes in a page of the host.
pub(crate) fn page_size() -> usize {
    // rustix may open a file to learn the page size, which a confined process must not; the C library learns it when
    // the process starts.
    // SAFETY: `sysconf` returns a number and touches no memory of this process.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(LARGEST)
}

/// The size to assume for a page where the host does not tell one.
const LARGEST: usize = 64 << 10;

#[cfg(test)]
mod tests {
    #[test]
    fn a_page_is_what_a_mapping_takes() {
        assert!([4, 16, 64].contains(&(super::page_size() >> 10)));
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let mut sizes = maps.lines().filter_map(|line| line.strip_prefix("KernelPageSize:"));
        let kib: usize = sizes.find_map(|size| size.trim().strip_suffix(" kB")?.parse().ok()).expect("smaps");
        assert_eq!(super::page_size(), kib << 10);
    }
}
