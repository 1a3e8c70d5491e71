//! Every kind of mount: on which device it is, what of it reaches the host, and mounts within mounts.

use std::fs;
use std::path::Path;

use machine::shares::{Content, View};

use crate::guest::{
    Answer, Driver, FIRST, Guest, ROOT, URGENT, device, long, longs, plain, source, start_devices,
    terminated, with_place, words,
};
use crate::{
    EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, EROFS, ESTALE, EXDEV, PROGRAM, house, read_args, write_args,
};

/// Features by which a kernel writes later, or looks whether contents have changed (linux/fuse.h).
const WRITEBACK: u32 = 1 << 16;
const LOOKS_AGAIN: u32 = 1 << 12;

const LIMIT: u64 = 8 << 20;

/// How long attributes may be believed: `attr_valid` in the answer to GETATTR.
fn valid(driver: &mut Driver, node: u64) -> u64 {
    long(&driver.ask(FIRST, 3, node, &longs(&[0, 0])).unwrap(), 0)
}

fn mode(driver: &mut Driver, node: u64) -> u32 {
    let told = driver.ask(FIRST, 3, node, &longs(&[0, 0])).unwrap();
    u32::from_le_bytes(told[76..80].try_into().unwrap())
}

fn read(driver: &mut Driver, node: u64) -> Answer {
    let handle = driver.open(node, 0)?;
    let found = driver.ask(FIRST, 15, node, &read_args(handle, 0, 4096));
    driver.ask(FIRST, 18, node, &longs(&[handle, 0, 0])).unwrap();
    found
}

fn write(driver: &mut Driver, node: u64, data: &[u8]) -> Answer {
    let handle = driver.open(node, 2)?;
    let written = driver.ask(FIRST, 16, node, &write_args(handle, data));
    driver.ask(FIRST, 18, node, &longs(&[handle, 0, 0])).unwrap();
    written
}

fn start(devices: Vec<machine::shares::Device>) -> (Guest, Vec<Driver>) {
    let (shares, mut sockets) = start_devices(Path::new(PROGRAM), devices, None);
    let rest = sockets.split_off(1);
    let guest = Guest::served_by((shares, sockets.remove(0)));
    (guest, rest.into_iter().map(Driver::new).collect())
}

#[test]
fn each_kind_is_on_its_device_and_only_one_changes_the_host() {
    let house = house();
    let (shared, other) = (house.path().join("shared"), house.path().join("other"));
    fs::write(shared.join("file"), "host").unwrap();
    fs::write(other.join("file"), "below").unwrap();
    let host = Content::Host { source: source(&shared, None), view: View::default() };
    let overlay = Content::Overlay { source: source(&other, None), limit: LIMIT, changes: None };
    let memory = Content::Memory { limit: LIMIT };
    let (mut shared_device, mut own) =
        start(vec![device(false, vec![plain(host), plain(overlay)]), device(true, vec![plain(memory)])]);
    let own = &mut own[0];
    assert_eq!(shared_device.agreed & (WRITEBACK | LOOKS_AGAIN), LOOKS_AGAIN);
    assert_eq!(own.agreed & (WRITEBACK | LOOKS_AGAIN), WRITEBACK);
    assert_eq!(&own.config(36)[..14], b"matchlock-own\0");

    // A folder in memory: everybody's, and believed for an hour.
    let folder = own.look_up(ROOT, b"0").unwrap();
    assert_eq!(own.look_up(ROOT, b"1"), Err(ENOENT));
    assert_eq!((mode(own, folder), valid(own, folder)), (0o041_777, 3600));
    let (made, _) = own.create(folder, b"made").unwrap();
    write(own, made, b"of the guest").unwrap();
    assert_eq!(read(own, made).unwrap(), b"of the guest");
    assert_eq!(valid(own, made), 3600);
    // To the byte of its limit.
    let (full, handle) = own.create(folder, b"full").unwrap();
    let data = vec![7; 60_000];
    let mut written = 0u64;
    let short = loop {
        let args = [longs(&[handle, written]), words(&[60_000, 0]), longs(&[0, 0]), data.clone()].concat();
        match own.ask(FIRST, 16, full, &args) {
            Ok(count) if count[..4] == 60_000u32.to_le_bytes() => written += 60_000,
            other => break other,
        }
        assert!(written < 2 * LIMIT);
    };
    assert!(short.is_ok() || short == Err(ENOSPC), "{short:?}");
    assert!(written > LIMIT / 2, "{written}");

    // Files below are asked for again soon; those that the guest changed are its own, and the host's stay.
    let (mount, overlay) =
        (shared_device.look_up(ROOT, b"0").unwrap(), shared_device.look_up(ROOT, b"1").unwrap());
    let below = shared_device.look_up(overlay, b"file").unwrap();
    assert_eq!(valid(&mut shared_device, below), 1);
    fs::write(other.join("file"), "below, later").unwrap();
    assert_eq!(read(&mut shared_device, below).unwrap(), b"below, later");
    write(&mut shared_device, below, b"BELOW").unwrap();
    assert_eq!(read(&mut shared_device, below).unwrap(), b"BELOW, later");
    assert_eq!(valid(&mut shared_device, below), 3600);
    shared_device.create(overlay, b"new").unwrap();
    assert_eq!(shared_device.rename((overlay, b"file"), (mount, b"x")), Err(EXDEV));
    let file = shared_device.look_up(mount, b"file").unwrap();
    write(&mut shared_device, file, b"HOST").unwrap();
    assert_eq!(fs::read(shared.join("file")).unwrap(), b"HOST");
    assert_eq!(fs::read(other.join("file")).unwrap(), b"below, later");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
}

#[test]
fn a_single_file_is_one_whatever_the_host_puts_in_its_place() {
    let house = house();
    let private = house.path().join("private");
    fs::write(private.join("other"), "other").unwrap();
    let secret = || source(&private, Some("secret"));
    let mounts = vec![
        plain(Content::Host { source: secret(), view: View::default() }),
        plain(Content::Host { source: secret(), view: View { readonly: true, ..View::default() } }),
        plain(Content::Overlay { source: secret(), limit: LIMIT, changes: None }),
    ];
    let (mut guest, _) = start(vec![device(false, mounts)]);
    let driver = &mut *guest;
    let file = |driver: &mut Driver, number: &[u8]| {
        let entry = driver.ask(FIRST, 1, ROOT, &terminated(number)).unwrap();
        // A file, and no mount of its own for the guest's kernel.
        assert_eq!((entry[124..128].to_vec(), entry[100..104].to_vec()), (words(&[0]), words(&[0o100_644])));
        (long(&entry, 0), long(&entry, 40))
    };
    let [(rw, one), (ro, two), (over, three)] = [&b"0"[..], b"1", b"2"].map(|number| file(driver, number));
    assert!(one != two && two != three && one != three, "one file, but three file systems");
    for node in [rw, ro, over] {
        assert_eq!(read(driver, node).unwrap(), b"secret");
        for name in [&b"other"[..], b"secret", b"x"] {
            assert_eq!(driver.look_up(node, name), Err(20), "{}", name.escape_ascii());
        }
        assert_eq!(driver.ask(FIRST, 27, node, &words(&[0, 0])), Err(20));
        assert_eq!(driver.ask(FIRST, 10, ROOT, &terminated(b"0")), Err(EROFS));
    }
    assert_eq!(write(driver, ro, b"x"), Err(EROFS));
    assert_eq!([rw, ro, over].map(|node| valid(driver, node)), [0; 3], "the host may replace it");
    write(driver, over, b"OVER").unwrap();
    assert_eq!(fs::read(private.join("secret")).unwrap(), b"secret");
    write(driver, rw, b"told").unwrap();
    assert_eq!(fs::read(private.join("secret")).unwrap(), b"toldet");

    // An editor of the host writes a new file and gives it the name; what is open reads on in it.
    let handle = driver.open(rw, 2).unwrap();
    fs::write(private.join("new"), "new and longer").unwrap();
    fs::rename(private.join("new"), private.join("secret")).unwrap();
    assert_eq!(driver.ask(FIRST, 15, rw, &read_args(handle, 0, 4096)).unwrap(), b"new and longer");
    assert_eq!(read(driver, ro).unwrap(), b"new and longer");
    assert_eq!((read(driver, over).unwrap(), valid(driver, over)), (b"OVERet".to_vec(), 3600));
    driver.ask(FIRST, 16, rw, &write_args(handle, b"NEW")).unwrap();
    assert_eq!(fs::read(private.join("secret")).unwrap(), b"NEW and longer");
    // Where it is gone, or no file, it is not there; what is open stays.
    fs::remove_file(private.join("secret")).unwrap();
    assert_eq!(driver.open(ro, 0), Err(ENOENT));
    assert_eq!(driver.ask(FIRST, 3, rw, &longs(&[0, 0])), Err(ENOENT));
    assert_eq!(driver.ask(FIRST, 15, rw, &read_args(handle, 0, 3)).unwrap(), b"NEW");
    fs::create_dir(private.join("secret")).unwrap();
    assert_eq!(driver.open(rw, 0), Err(ENOENT));
    fs::remove_dir(private.join("secret")).unwrap();
    fs::write(private.join("secret"), "again").unwrap();
    assert_eq!(read(driver, rw).unwrap(), b"again");
    assert_eq!(fs::read(private.join("other")).unwrap(), b"other");
    assert_eq!(fs::read_dir(&private).unwrap().count(), 2);
}

#[test]
fn mounts_within_mounts_have_places_that_are_made_nowhere() {
    let house = house();
    let (shared, other) = (house.path().join("shared"), house.path().join("other"));
    fs::create_dir(shared.join("src")).unwrap();
    fs::write(shared.join("src/hidden"), "hidden").unwrap();
    let host = Content::Host { source: source(&shared, None), view: View::default() };
    let overlay = Content::Overlay { source: source(&other, None), limit: LIMIT, changes: None };
    let mounts = vec![with_place(host, "src", false), with_place(overlay, "etc/conf", true)];
    let memory = with_place(Content::Memory { limit: LIMIT }, "a/b", false);
    let (mut guest, mut own) = start(vec![device(false, mounts), device(true, vec![memory])]);
    let (driver, own) = (&mut *guest, &mut own[0]);

    let mount = driver.look_up(ROOT, b"0").unwrap();
    let place = driver.look_up(mount, b"src").unwrap();
    assert_eq!((mode(driver, place), driver.look_up(place, b"hidden")), (0o040_755, Err(ENOENT)));
    assert_eq!(driver.ask(FIRST, 11, mount, &terminated(b"src")), Err(EBUSY));
    assert_eq!(driver.rename((mount, b"src"), (mount, b"x")), Err(EBUSY));
    assert_eq!(driver.create(mount, b"src"), Err(EEXIST));
    assert_eq!(driver.create(place, b"x"), Err(EROFS));
    driver.create(mount, b"beside").unwrap();
    assert_eq!(fs::read(shared.join("src/hidden")).unwrap(), b"hidden");

    let overlay = driver.look_up(ROOT, b"1").unwrap();
    let etc = driver.look_up(overlay, b"etc").unwrap();
    let conf = driver.look_up(etc, b"conf").unwrap();
    assert_eq!(mode(driver, conf), 0o100_644);
    driver.create(etc, b"beside").unwrap();
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);

    let folder = own.look_up(ROOT, b"0").unwrap();
    let a = own.look_up(folder, b"a").unwrap();
    own.create(a, b"beside").unwrap();
    let b = own.look_up(a, b"b").unwrap();
    assert_eq!(own.create(b, b"x"), Err(EROFS));
    assert_eq!(own.ask(FIRST, 11, folder, &terminated(b"a")), Err(EBUSY));
    // Forgotten, they are found again as the same nodes.
    for node in [a, b] {
        assert_eq!(own.serve_bytes(URGENT, &crate::guest::request(2, node, &longs(&[u64::MAX])), 0), b"");
    }
    assert_eq!((own.look_up(folder, b"a"), own.look_up(a, b"b")), (Ok(a), Ok(b)));
    for node in [1 << 48 | 1 << 47 | 99, 1 << 48 | 3 << 46, 2 << 48 | 1] {
        assert_eq!(own.look_up(node, b"b"), Err(ESTALE), "{node:#x}");
    }
}

#[test]
fn what_is_kept_is_bounded_and_lies_are_answered() {
    let (mut guest, _) = start(vec![device(true, vec![plain(Content::Memory { limit: LIMIT })])]);
    let pid = guest.shares.pid();
    let own = &mut *guest;
    let folder = own.look_up(ROOT, b"0").unwrap();
    for name in [&b".."[..], b".", b"a/b", b"/etc/passwd"] {
        for parent in [ROOT, folder] {
            assert_eq!(own.look_up(parent, name), Err(EINVAL), "{}", name.escape_ascii());
        }
    }
    // As many files as there is room for, none ever given back.
    let made = (0..).map(|number: u32| own.create(folder, number.to_string().as_bytes()));
    let made = made.take_while(Result::is_ok).count();
    assert!((1000..20_000).contains(&made), "{made}");
    assert_eq!(own.create(folder, b"one more").err(), Some(ENOSPC));
    let resident = crate::of_proc(pid, "status", "RssAnon:");
    let resident: u64 = resident.split(' ').next().unwrap().parse().unwrap();
    assert!(resident < (3 * LIMIT) >> 10, "{resident} KiB");
    own.ask(FIRST, 10, folder, &terminated(b"0")).unwrap();
    own.ask(FIRST, 10, folder, &terminated(b"1")).unwrap();
}

#[test]
fn changes_of_an_overlay_are_written_down_when_asked_for() {
    let house = house();
    let (other, kept) = (house.path().join("other"), house.path().join("kept"));
    fs::write(other.join("file"), "below").unwrap();
    fs::create_dir(&kept).unwrap();
    let changes = Some(fs::File::open(&kept).unwrap().into());
    let overlay = Content::Overlay { source: source(&other, None), limit: LIMIT, changes };
    let (mut guest, _) = start(vec![device(false, vec![plain(overlay)])]);
    let keeper = guest.shares.keeper().unwrap();
    let told = || {
        let list = changes::Kept::new(fs::File::open(&kept).unwrap().into()).list().unwrap().unwrap();
        let changes = changes::changes(&list).into_iter();
        changes.map(|change| (change.kind, change.place.to_string())).collect::<Vec<_>>()
    };
    let driver = &mut *guest;
    let mount = driver.look_up(ROOT, b"0").unwrap();
    keeper.keep().unwrap();
    assert_eq!(told(), []);
    let file = driver.look_up(mount, b"file").unwrap();
    write(driver, file, b"BELOW").unwrap();
    keeper.keep().unwrap();
    assert_eq!(told(), [(changes::Kind::Modified, "file".to_owned())]);
    let (new, _) = driver.create(mount, b"new").unwrap();
    write(driver, new, &[7; 20_000]).unwrap();
    // Contents of a small file are in the list, those of others beside it.
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 2);
    keeper.keep().unwrap();
    assert_eq!((told().len(), keeper.failure()), (2, None));
    drop(guest);
    assert_eq!(fs::read(kept.join("1")).unwrap(), [7; 20_000]);
    let other = (fs::read(other.join("file")).unwrap(), fs::read_dir(&other).unwrap().count());
    assert_eq!(other, (b"below".into(), 1));
    assert!(keeper.keep().is_err() && keeper.failure().is_some(), "the process is gone");
}
