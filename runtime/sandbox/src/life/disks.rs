//! The user's disks of a sandbox: opened and locked before anything else of it is made, and held until it has ended.
//!
//! The machine's processes get the same open files, so that each lock is held until none of them can write any more.
//! Not here: the checks of a disk (`policy::disks`) and of its image (`images::DiskImage`).

use std::io;
use std::path::Path;

use disk::Segment;
use guest_protocol::DiskMount;
use images::{DiskImage, Volumes};
use policy::disks::{Disk, Source};

use crate::Home;
use crate::life::error::{Error, Result};

/// Disks that nobody else writes; nobody else even reads the writable ones.
#[derive(Debug)]
pub(crate) struct Disks(Vec<(Disk, DiskImage)>);

impl Disks {
    /// Opens all disks, as the user they belong to.
    pub(crate) fn attach(home: &Home, disks: &[Disk]) -> Result<Self> {
        policy::disks::check(disks)?;
        let attach = |disk: &Disk| {
            let image = open(home.cache(), disk).map_err(Error::disk(disk))?;
            Ok((disk.clone(), image))
        };
        Ok(Self(disks.iter().map(attach).collect::<Result<_>>()?))
    }

    /// Whether the guest has to write data back before it ends.
    pub(crate) fn any_writable(&self) -> bool {
        self.0.iter().any(|(disk, _)| disk.is_writable())
    }

    /// The disks as devices of a machine.
    pub(crate) fn devices(&self) -> io::Result<Vec<machine::Disk>> {
        let device = |(disk, image): &(Disk, DiskImage)| {
            let file = image.file.try_clone()?.into();
            let segments = vec![Segment::File { file, offset: 0, len: image.len }];
            Ok(machine::Disk { segments, readonly: !disk.is_writable() })
        };
        self.0.iter().map(device).collect()
    }

    /// The disks as mounts of the guest, in the devices' order.
    pub(crate) fn mounts(&self) -> Vec<DiskMount> {
        let mount = |(disk, _): &(Disk, DiskImage)| DiskMount {
            path: disk.guest_path.clone(),
            readonly: !disk.is_writable(),
            uid: disk.owner().uid,
            gid: disk.owner().gid,
        };
        self.0.iter().map(mount).collect()
    }
}

fn open(cache: &Path, disk: &Disk) -> images::Result<DiskImage> {
    match &disk.source {
        Source::Path(path) => Ok(DiskImage::open(Path::new(path), disk.is_writable())?),
        Source::Volume(name) => Volumes::open(cache)?.attach(name, disk.is_writable()),
    }
}

#[cfg(test)]
mod tests {
    use policy::disks::{spec, specs};

    use super::*;

    /// Waits until the lock is free: a process that another test starts may hold a copy of it for a moment.
    fn settle(path: &Path) {
        let file = std::fs::File::open(path).unwrap();
        file.lock().unwrap();
        file.unlock().unwrap();
    }

    #[test]
    fn disks_are_held_as_long_as_any_descriptor_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let path = Volumes::open(home.cache()).unwrap().create("data", 16).unwrap().path;
        let (writer, reader) =
            (spec("@data:/data:uid=7").unwrap(), spec(&format!("{}:/d:ro", path.display())));
        let reader = reader.unwrap();
        let disks = Disks::attach(&home, std::slice::from_ref(&writer)).unwrap();
        let mount = DiskMount { path: "/data".into(), readonly: false, uid: Some(7), gid: None };
        assert_eq!((disks.mounts(), disks.any_writable()), (vec![mount], true));
        let devices = disks.devices().unwrap();
        assert_eq!((devices.len(), devices[0].readonly, devices[0].segments[0].len()), (1, false, 16 << 20));
        drop(disks);
        let error = Disks::attach(&home, std::slice::from_ref(&reader)).unwrap_err().to_string();
        assert!(error.starts_with("invalid disk mount \"/"), "{error}");
        assert!(error.contains(": in use: end the sandbox it is attached to first"), "{error}");
        drop(devices);
        settle(&path);
        let disks = Disks::attach(&home, &[reader]).unwrap();
        assert!(disks.devices().unwrap()[0].readonly && !disks.any_writable());
    }

    #[test]
    fn one_that_cannot_be_had_lets_go_of_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let path = Volumes::open(home.cache()).unwrap().create("data", 16).unwrap().path;
        for (other, why) in [
            ("@gone:/e", "invalid disk mount \"@gone:/e\": named volume not found: gone"),
            ("/no/such:/e:ro", "invalid disk mount \"/no/such:/e:ro\": no such file or directory"),
            ("@data:/data", "invalid disk mount \"@data:/data\": /data has another disk already"),
        ] {
            let disks = [spec("@data:/data").unwrap(), spec(other).unwrap()];
            assert_eq!(Disks::attach(&home, &disks).unwrap_err().to_string(), why);
            settle(&path);
        }
        Disks::attach(&home, &specs(&["@data:/data"]).unwrap()).unwrap();
    }
}
