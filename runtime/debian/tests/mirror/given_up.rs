//! What is given up while its mirror says nothing, or while others have the lists.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use debian::{Archive, Error};
use waiting::CancellationToken;

use crate::{PACKAGE, RELEASE, Says, World, names};

/// Far below every limit that is counted in seconds.
const AT_ONCE: Duration = Duration::from_millis(500);

/// As good as for ever.
const SILENCE: Duration = Duration::from_secs(600);

/// Gives `act` up once `begun` says so.
#[track_caller]
fn given_up_at_once<T: Send>(
    begun: impl Fn() -> bool,
    act: impl FnOnce(&CancellationToken) -> Result<T, Error> + Send,
) {
    let token = CancellationToken::new();
    thread::scope(|scope| {
        let acting = scope.spawn(|| act(&token));
        while !begun() {
            thread::yield_now();
        }
        let given_up = Instant::now();
        token.cancel();
        let error = acting.join().unwrap().map(drop).unwrap_err();
        let after = given_up.elapsed();
        assert!(matches!(error, Error::GivenUp) && after < AT_ONCE, "{error} after {after:?}");
    });
}

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
    given_up_at_once(begun, |token| fetch(&world, token));
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
        // In this process only one reads lists at a time.
        given_up_at_once(|| true, |token| world.update_until(token));
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
    given_up_at_once(|| true, |token| world.update_until(token));
    assert!(world.asked(RELEASE).is_empty());
    drop(held);
    world.fetch().unwrap();
}
