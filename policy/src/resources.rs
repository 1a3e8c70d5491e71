//! Checks of the resources that a sandbox asks for.
//!
//! Not here: enforcing them.

/// Least guest RAM in which a stock kernel with its initramfs boots, with a little to spare: 72 is the least seen.
pub const MIN_MEMORY_MB: u64 = 96;

/// Least size of the writable disk: ext4 with a journal needs a few megabytes for itself.
pub const MIN_DISK_MB: u64 = 16;

/// Largest size of the writable disk: 16 TiB, ext4's limit with 4 KiB blocks.
pub const MAX_DISK_MB: u64 = 16 << 20;

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u32 = 64;

/// The user's request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WantedResources {
    /// CPUs, fractions allowed.
    pub cpus: f64,
    /// Guest RAM.
    pub memory_mb: u64,
    /// Writable disk.
    pub disk_size_mb: u64,
}

/// The host's resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs this process may use.
    pub cpus: u32,
    /// RAM.
    pub memory_mb: u64,
    /// The longest file that this process may write, if that is limited (`ulimit -f`).
    pub file_mb: Option<u64>,
}

/// The resources that a sandbox gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// vCPUs: the requested CPUs, rounded up.
    pub vcpus: u8,
    /// Quota in thousandths of a CPU; 0 = the vCPUs are the limit.
    pub cpu_quota_milli: u32,
    /// Guest RAM.
    pub memory_mib: u32,
    /// Writable disk.
    pub disk_size_mb: u64,
}

/// The reason why a request cannot be met.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResourceError {
    /// The value is no number of CPUs.
    #[error("{} is no number of CPUs: it must be finite and greater than 0", brief(*.0))]
    Cpus(f64),
    /// The host has fewer CPUs.
    #[error("{} CPUs asked for, but at most {most} are available", brief(*asked))]
    TooManyCpus {
        /// The requested CPUs.
        asked: f64,
        /// The available CPUs.
        most: u32,
    },
    /// The memory is too little to boot in.
    #[error("{0} MB of memory is less than the {MIN_MEMORY_MB} MB a guest needs")]
    TooLittleMemory(u64),
    /// The host has less memory.
    #[error("{asked} MB of memory asked for, but the host has {host} MB")]
    TooMuchMemory {
        /// The requested memory.
        asked: u64,
        /// The host's memory.
        host: u64,
    },
    /// The size is outside the bounds.
    #[error("a disk of {0} MB is outside {MIN_DISK_MB}..{MAX_DISK_MB} MB")]
    Disk(u64),
    /// The disk is longer than files may be.
    #[error("a disk of {asked} MB asked for, but no file may be longer than {most} MB here (ulimit -f)")]
    LongFile {
        /// The requested size.
        asked: u64,
        /// The allowed size.
        most: u64,
    },
}

/// A number in few characters, even if it has hundreds of digits.
fn brief(number: f64) -> String {
    if number.abs() < 1e9 || !number.is_finite() { number.to_string() } else { format!("{number:e}") }
}

/// Checks a request against the host.
pub fn grant(request: &WantedResources, host: &Host) -> Result<Grant, ResourceError> {
    let (vcpus, cpu_quota_milli) = cpus(request.cpus, host.cpus)?;
    if request.memory_mb < MIN_MEMORY_MB {
        return Err(ResourceError::TooLittleMemory(request.memory_mb));
    }
    let too_much = ResourceError::TooMuchMemory { asked: request.memory_mb, host: host.memory_mb };
    if request.memory_mb > host.memory_mb {
        return Err(too_much);
    }
    let memory_mib = u32::try_from(request.memory_mb).map_err(|_| too_much)?;
    if !(MIN_DISK_MB..=MAX_DISK_MB).contains(&request.disk_size_mb) {
        return Err(ResourceError::Disk(request.disk_size_mb));
    }
    if let Some(most) = host.file_mb.filter(|most| *most < request.disk_size_mb) {
        return Err(ResourceError::LongFile { asked: request.disk_size_mb, most });
    }
    Ok(Grant { vcpus, cpu_quota_milli, memory_mib, disk_size_mb: request.disk_size_mb })
}

fn cpus(asked: f64, host: u32) -> Result<(u8, u32), ResourceError> {
    if !asked.is_finite() || asked <= 0.0 {
        return Err(ResourceError::Cpus(asked));
    }
    let most = host.min(MAX_VCPUS);
    let whole = asked.ceil();
    if whole > f64::from(most) {
        return Err(ResourceError::TooManyCpus { asked, most });
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 <= whole <= MAX_VCPUS")]
    let vcpus = whole as u8;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 < asked <= MAX_VCPUS")]
    let milli = (asked * 1000.0) as u32;
    // With less than a hundredth of a CPU nothing ends in sensible time (cgroup quotas start at 1 ms of 100 ms).
    Ok((vcpus, if whole > asked { milli.max(10) } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { cpus: 4, memory_mb: 8000, file_mb: None };

    fn ask(cpus: f64, memory_mb: u64, disk_size_mb: u64) -> Result<Grant, ResourceError> {
        grant(&WantedResources { cpus, memory_mb, disk_size_mb }, &HOST)
    }

    #[test]
    fn a_disk_is_a_file() {
        let grant = |file_mb| {
            let request = WantedResources { cpus: 1.0, memory_mb: 512, disk_size_mb: 5120 };
            grant(&request, &Host { file_mb, ..HOST })
        };
        for enough in [None, Some(5120), Some(u64::MAX)] {
            assert_eq!(grant(enough).unwrap().disk_size_mb, 5120);
        }
        assert_eq!(grant(Some(5119)), Err(ResourceError::LongFile { asked: 5120, most: 5119 }));
    }

    #[test]
    fn cpus_round_up_and_fractions_become_a_quota() {
        for (asked, vcpus, quota) in [(1.0, 1, 0), (0.5, 1, 500), (1.5, 2, 1500), (4.0, 4, 0), (1e-9, 1, 10)]
        {
            let grant = ask(asked, 512, 5120).unwrap();
            assert_eq!((grant.vcpus, grant.cpu_quota_milli), (vcpus, quota), "{asked}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for cpus in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(ask(cpus, 512, 5120), Err(ResourceError::Cpus(_))), "{cpus}");
        }
        for (cpus, text) in
            [(-1e308, "-1e308 is no"), (1e308, "1e308 CPUs asked"), (100_000.0, "100000 CPUs")]
        {
            assert!(ask(cpus, 512, 5120).unwrap_err().to_string().starts_with(text), "{cpus}");
        }
        assert!(matches!(ask(4.1, 512, 5120), Err(ResourceError::TooManyCpus { most: 4, .. })));
        assert!(matches!(ask(1.0, 63, 5120), Err(ResourceError::TooLittleMemory(63))));
        assert!(matches!(ask(1.0, 8001, 5120), Err(ResourceError::TooMuchMemory { host: 8000, .. })));
        assert!(matches!(ask(1.0, u64::MAX, 5120), Err(ResourceError::TooMuchMemory { .. })));
        assert!(matches!(ask(1.0, 512, 15), Err(ResourceError::Disk(15))));
        assert!(matches!(ask(1.0, 512, MAX_DISK_MB + 1), Err(ResourceError::Disk(_))));
    }
}
