//! Servers that send too little, or redirect elsewhere.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::time::{Duration, Instant};

use served::http::{Answer, Asked, Server, ok, status};
use waiting::CancellationToken;
use web::{Client, Connections, Download, Error, LEAST_BYTES, Url};

const SILENCE: Duration = Duration::from_secs(1);

/// A body that takes far too long at a byte every tenth of a second.
fn body() -> Vec<u8> {
    vec![7; 4 * usize::try_from(LEAST_BYTES).unwrap()]
}

fn wait_for<T>(what: impl Future<Output = T>) -> T {
    Connections::new().unwrap().wait_for(&CancellationToken::new(), what).unwrap()
}

fn url(server: &Server) -> Url {
    Url::parse(&format!("http://{}/x", server.address)).unwrap()
}

/// Reads a body; returns the number of bytes and the result.
async fn get(server: &Server) -> (usize, Result<(), Error>) {
    let url = url(server);
    let client = Client::new(&url, SILENCE, Vec::new()).unwrap();
    let mut answer = match client.send(client.get(url)).await {
        Ok(answer) => answer,
        Err(error) => return (0, Err(error)),
    };
    let mut bytes = 0;
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes += chunk.len(),
            Ok(None) => return (bytes, Ok(())),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

#[test]
fn next_to_nothing_is_silence() {
    let drip = Some(SILENCE / 10);
    for (stall, drip) in [(0, drip), (body().len() / 2, drip), (9, None)] {
        let answer = move |_: &Asked| Answer { stall: Some(stall), drip, ..ok(&body()) };
        let server = Server::start(answer).unwrap();
        let begun = Instant::now();
        let (came, ended) = wait_for(get(&server));
        assert!((stall..stall + 20).contains(&came), "{came}");
        assert!(matches!(ended, Err(Error::Slow { bytes, .. }) if bytes < LEAST_BYTES), "{ended:?}");
        assert!(begun.elapsed() < 3 * SILENCE);
    }
    let server = Server::start(|_| Answer { stall: Some(0), ..ok(&body()) }).unwrap();
    assert_eq!(wait_for(get(&server)), (0, Err(Error::Silent(SILENCE))));
    // A short body may come slowly, if not too slowly.
    let server = Server::start(move |_| Answer { stall: Some(0), drip, ..ok(b"short") }).unwrap();
    assert_eq!(wait_for(get(&server)), (5, Ok(())));
}

/// A consumer of a body may be as slow as it likes.
#[test]
fn only_waiting_counts() {
    let server = Server::start(|_| ok(&body())).unwrap();
    let url = url(&server);
    let client = Client::new(&url, SILENCE, Vec::new()).unwrap();
    let chunks = wait_for(async {
        let mut answer = client.send(client.get(url)).await.unwrap();
        let mut chunks = 0;
        while let Some(chunk) = answer.chunk().await.unwrap() {
            // Blocking the thread once is enough; a converter of layers does so too.
            if chunks == 0 {
                let (_sender, nothing) = std::sync::mpsc::channel::<()>();
                assert!(!chunk.is_empty() && nothing.recv_timeout(SILENCE * 3 / 2).is_err());
            }
            chunks += 1;
        }
        chunks
    });
    assert!(chunks > 1, "{chunks}");
}

/// Connections that bring a few bytes each could otherwise go on for hours.
#[test]
fn a_download_from_a_dripping_server_ends() {
    let answer = |asked: &Asked| {
        let part = ok(&body()).part(asked.from());
        Answer { stall: Some(0), drip: Some(SILENCE / 10), ..part }
    };
    let server = Server::start(answer).unwrap();
    let url = url(&server);
    let client = Client::new(&url, SILENCE, Vec::new()).unwrap();
    let mut download = Download::default();
    wait_for(async {
        loop {
            let mut answer = client.send(download.rest(client.get(url.clone()))).await.unwrap();
            download.begin(&answer);
            while let Ok(Some(chunk)) = answer.chunk().await {
                assert_eq!(download.take(&chunk).len(), chunk.len());
            }
            if !download.goes_on() {
                break;
            }
        }
    });
    let asked: Vec<usize> = server.asked("").iter().map(Asked::from).collect();
    assert_eq!(asked.len(), 3);
    assert!(asked[0] == 0 && asked.is_sorted() && asked[2] > asked[1] && asked[2] < 40, "{asked:?}");
}

#[test]
fn redirects_are_few() {
    let again = |_: &Asked| Answer { headers: vec![("Location", "/again".to_owned())], ..status(302) };
    let server = Server::start(again).unwrap();
    let (_, ended) = wait_for(get(&server));
    assert_eq!(ended, Err(Error::Other("too many redirects".to_owned())));
    assert_eq!(server.asked("").len(), 6);
}

#[test]
fn nobody_there_is_told_without_the_url() {
    let server = Server::start(|_| status(200)).unwrap();
    let address = server.address.clone();
    drop(server);
    let url = Url::parse(&format!("http://user:secret@{address}/x")).unwrap();
    let client = Client::new(&url, SILENCE, Vec::new()).unwrap();
    let error = wait_for(client.send(client.get(url))).map(drop).unwrap_err().to_string();
    assert!(error.contains("onnection refused") && !error.contains("secret"), "{error}");
}

/// With https, nothing is sent without TLS.
#[test]
fn tls_is_not_left() {
    let server = Server::start(|_| ok(b"plain")).unwrap();
    let secure = Url::parse("https://server.example/").unwrap();
    // On a host without authorities there is no client, and nothing to test.
    let Ok(client) = Client::new(&secure, SILENCE, Vec::new()) else { return };
    assert!(wait_for(client.send(client.get(url(&server)))).is_err());
    assert!(server.asked("").is_empty());
}
