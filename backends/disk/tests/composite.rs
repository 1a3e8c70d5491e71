//! The composite disk as other programs see it: sfdisk, sgdisk, the host's kernel.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs, reason = "tests")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use disk::composite::{self, ALIGNMENT, MAX_FILES, Part, PlanError};
use disk::{Disk, Segment};
use proptest::prelude::*;
use virtio::blk::Blocks;
use vm_memory::VolatileSlice;

/// The contents of layer `index`.
fn layer(index: usize, len: u64) -> Vec<u8> {
    (0..len).map(|n| (n as usize * 7 + index * 13 + 1) as u8).collect()
}

/// The disk over real files, written to a file.
fn materialize(lengths: &[u64]) -> tempfile::NamedTempFile {
    let files = lengths.iter().enumerate().map(|(index, len)| -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&layer(index, *len)).unwrap();
        file.into()
    });
    let plan = composite::plan(lengths).unwrap();
    let len = plan.len();
    let mut disk = Disk::new(plan.with_files(files.collect()).unwrap(), true).unwrap();
    assert_eq!(disk.len(), len);
    let mut contents = vec![0xCC; usize::try_from(len).unwrap()];
    disk.read(0, &[VolatileSlice::from(&mut contents[..])]).unwrap();
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(&contents).unwrap();
    image
}

/// The expected place of each layer (first sector, sectors), computed independently of the code under test.
fn expected(lengths: &[u64]) -> Vec<(u64, u64)> {
    let entries: u64 = if lengths.len() > 128 { 64 } else { 32 };
    let mut next = (2 + entries).div_ceil(8) * 8;
    lengths
        .iter()
        .map(|len| {
            let sectors = len.div_ceil(4096) * 8;
            next += sectors;
            (next - sectors, sectors)
        })
        .collect()
}

/// A program's output; `None`, with the reason printed, if the program is missing.
fn output(program: &str, args: &[&str], image: &Path) -> Option<String> {
    match Command::new(program).args(args).arg(image).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            Some(text + &String::from_utf8_lossy(&output.stderr))
        }
        Err(error) => {
            skip::skip(program, format!("{program}: {error}"));
            None
        }
    }
}

const LENGTHS: [u64; 5] = [4096, 1, 8192, 12_289, 100_000];

#[test]
fn sfdisk_finds_the_partitions() {
    for lengths in [LENGTHS.to_vec(), vec![4096; MAX_FILES]] {
        let image = materialize(&lengths);
        let Some(dump) = output("sfdisk", &["-d"], image.path()) else { return };
        assert!(dump.contains("label: gpt"), "{dump}");
        let found: Vec<(u64, u64)> = dump
            .lines()
            .filter(|line| line.contains("start="))
            .map(|line| {
                assert!(line.contains("type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"), "{line}");
                let field = |name: &str| {
                    let rest = &line[line.find(name).unwrap() + name.len()..];
                    rest.split(',').next().unwrap().trim().parse().unwrap()
                };
                (field("start="), field("size="))
            })
            .collect();
        assert_eq!(found, expected(&lengths));
        let verdict = output("sfdisk", &["--verify"], image.path()).unwrap();
        assert!(verdict.contains("No errors detected"), "{verdict}");
    }
}

#[test]
fn sgdisk_finds_no_fault() {
    let image = materialize(&LENGTHS);
    let Some(verdict) = output("sgdisk", &["-v"], image.path()) else { return };
    assert!(verdict.contains("No problems found"), "{verdict}");
}

/// A read-only loop device whose partitions are scanned. Dropping the value removes the device.
struct Loop(String);

impl Loop {
    fn attach(image: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["-rPf", "--show"]).arg(image).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            other => {
                skip::skip("loop", format!("no loop device: {other:?}"));
                None
            }
        }
    }

    /// First sector and number of sectors of a partition, if the kernel found it.
    fn partition(&self, number: usize) -> Option<(u64, u64)> {
        let name = self.0.rsplit('/').next().unwrap();
        let field = |field: &str| {
            let text = std::fs::read_to_string(format!("/sys/block/{name}/{name}p{number}/{field}")).ok()?;
            text.trim().parse().ok()
        };
        Some((field("start")?, field("size")?))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Whether this kernel was built to read GPT: it finds a partition that sfdisk made.
fn kernel_reads_gpt() -> bool {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4 << 20).unwrap();
    let script = Command::new("sh")
        .args(["-c", "echo 'label: gpt\n2048,2048' | sfdisk -q \"$0\""])
        .arg(image.path())
        .status();
    let made = script.is_ok_and(|status| status.success());
    let reads =
        made && Loop::attach(image.path()).is_some_and(|device| device.partition(1) == Some((2048, 2048)));
    if !reads {
        skip::skip("gpt", "this kernel finds no partition on a disk made by sfdisk");
    }
    reads
}

#[test]
fn the_kernel_finds_every_partition_with_its_contents() {
    if !rustix::process::geteuid().is_root() {
        skip::skip("root", "loop devices need root");
        return;
    }
    if !kernel_reads_gpt() {
        return;
    }
    for lengths in [LENGTHS.to_vec(), vec![4096; MAX_FILES]] {
        let image = materialize(&lengths);
        let Some(device) = Loop::attach(image.path()) else { return };
        for (index, place) in expected(&lengths).into_iter().enumerate() {
            assert_eq!(device.partition(index + 1), Some(place));
            // Device nodes are udev's work; without a node, the test has only the numbers above.
            let Ok(mut node) = File::open(format!("{}p{}", device.0, index + 1)) else { continue };
            let mut contents = Vec::new();
            node.read_to_end(&mut contents).unwrap();
            let mut layer = layer(index, lengths[index]);
            layer.resize(contents.len(), 0);
            assert!(contents == layer);
        }
    }
}

proptest! {
    #[test]
    fn files_are_aligned_in_order_and_apart(lengths in proptest::collection::vec(1..1u64 << 40, 1..MAX_FILES)) {
        let plan = composite::plan(&lengths).unwrap();
        prop_assert_eq!(&plan, &composite::plan(&lengths).unwrap());
        let mut position = 0;
        let mut next = 0;
        for part in plan.parts() {
            position += match part {
                Part::Bytes(bytes) => bytes.len() as u64,
                Part::Zeroes(len) => {
                    prop_assert!(*len < ALIGNMENT);
                    *len
                }
                Part::File { index, len } => {
                    prop_assert_eq!((*index, *len), (next, lengths[next]));
                    prop_assert_eq!(position / 512, expected(&lengths)[next].0);
                    next += 1;
                    *len
                }
            };
        }
        prop_assert_eq!(next, lengths.len());
        prop_assert_eq!(position, plan.len());
    }
}

#[test]
fn refuses_what_cannot_be_shown() {
    assert_eq!(composite::plan(&[]), Err(PlanError::NoFiles));
    assert_eq!(composite::plan(&[1; MAX_FILES + 1]), Err(PlanError::TooMany(MAX_FILES + 1)));
    assert_eq!(composite::plan(&[1, 0]), Err(PlanError::Empty(1)));
    assert_eq!(composite::plan(&[u64::MAX]), Err(PlanError::TooLarge));
    assert_eq!(composite::plan(&[1 << 62, 1 << 62]), Err(PlanError::TooLarge));
    let files = |count: usize| (0..count).map(|_| tempfile::tempfile().unwrap().into()).collect();
    let plan = composite::plan(&[1, 2]).unwrap();
    assert!(plan.clone().with_files(files(1)).is_none());
    assert!(plan.clone().with_files(files(3)).is_none());
    let segments = plan.with_files(files(2)).unwrap();
    assert!(matches!(segments[1], Segment::File { offset: 0, len: 1, .. }));
}
