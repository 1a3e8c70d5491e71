//! Lookups that are given up while the mirror sends nothing, or while another caller has the lists.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use debian::{Archive, Error};
use waiting::CancellationToken;
use waiting::testing::{given_up_at_once, is_waited_for};

use crate::{PACKAGE, RELEASE, Says, World, names};

/// Longer than any test runs.
const SILENCE: Duration = Duration::from_secs(600);

fn fetch(world: &World, token: &CancellationToken) -> Result<Archive, Error> {
    let archive = world.update_until(token)?;
    archive.fetch("image-1", &world.downloads()).map(|_| archive)
}

#[test]
fn a_package_in_the_middle() {
    let says = Says::truth();
    let mut world = World::new(&says);
    world.silence = SILENCE;
    world.server.change(PACKAGE, |file| file.stall = Some(300_000));
    let half = world.downloads().join("image-1.deb");
    let begun = || fs::metadata(&half).is_ok_and(|file| file.len() == 300_000);
    let error = given_up_at_once(begun, |token| fetch(&world, token));
    assert!(matches!(error, Error::GivenUp), "{error}");
    assert!(names(&world.lists()).is_empty() && names(&world.downloads()).is_empty());
    world.server.change(PACKAGE, |file| file.stall = None);
    assert!(fs::read(world.fetch().unwrap().path).unwrap() == says.package);
}

#[test]
fn lists_that_do_not_come_and_those_who_wait_for_them() {
    let mut world = World::new(&Says::truth());
    world.silence = SILENCE;
    world.server.change(RELEASE, |file| file.stall = Some(0));
    let token = CancellationToken::new();
    thread::scope(|scope| {
        let first = scope.spawn(|| world.update_until(&token).map(drop));
        while world.asked(RELEASE).is_empty() {
            thread::yield_now();
        }
        // In this process only one caller reads lists at a time.
        let error = given_up_at_once(|| true, |token| world.update_until(token));
        assert!(matches!(error, Error::GivenUp), "{error}");
        assert!(!first.is_finished());
        token.cancel();
        assert!(matches!(first.join().unwrap(), Err(Error::GivenUp)));
    });
    world.server.change(RELEASE, |file| file.stall = None);
    world.fetch().unwrap();
}

#[test]
fn lists_that_another_process_has() {
    let world = World::new(&Says::truth());
    fs::create_dir(world.lists()).unwrap();
    let held = File::open(world.lists()).unwrap();
    held.lock().unwrap();
    let error = given_up_at_once(|| is_waited_for(&held), |token| world.update_until(token));
    assert!(matches!(error, Error::GivenUp), "{error}");
    assert!(world.asked(RELEASE).is_empty());
    drop(held);
    world.fetch().unwrap();
}
