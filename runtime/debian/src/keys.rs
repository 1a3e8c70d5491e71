//! Keys that may sign a release: Debian's, built in, and OpenPGP's rules on a key's use.
//!
//! `keys/` has the keys of the package debian-archive-keyring, without third parties' signatures. Not here: the
//! signed text.

use pgp::composed::{Deserializable as _, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, VerifyingKey};

use crate::release::MAX_AHEAD_SECONDS;

/// The keys that sign Debian 12 and its security updates.
const DEBIAN: [&str; 5] = [
    include_str!("keys/bookworm-automatic.asc"),
    include_str!("keys/bookworm-stable.asc"),
    include_str!("keys/trixie-automatic.asc"),
    include_str!("keys/bookworm-security-automatic.asc"),
    include_str!("keys/trixie-security-automatic.asc"),
];

/// Keys whose signatures are trusted.
#[derive(Debug, Clone)]
pub struct Keys(Vec<SignedPublicKey>);

/// The reason why a text is no key.
#[derive(Debug, thiserror::Error)]
#[error("not an OpenPGP key: {0}")]
pub struct KeyError(String);

impl Keys {
    /// Debian's keys.
    pub fn debian() -> Result<Self, KeyError> {
        Self::parse(DEBIAN)
    }

    /// Parses armored keys.
    pub fn parse<'a>(armored: impl IntoIterator<Item = &'a str>) -> Result<Self, KeyError> {
        let wrong = |error: pgp::errors::Error| KeyError(error.to_string());
        let one = |armored: &str| {
            let (key, _) = SignedPublicKey::from_string(armored).map_err(wrong)?;
            key.verify_bindings().map_err(wrong)?;
            Ok(key)
        };
        armored.into_iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of these keys, valid at `now`, made this signature of the text.
    pub(crate) fn have_signed(&self, signature: &Signature, text: &str, now: u64) -> bool {
        is_acceptable(signature, now)
            && self.0.iter().any(|certificate| has_signed(certificate, signature, text, now))
    }
}

fn has_signed(certificate: &SignedPublicKey, signature: &Signature, text: &str, now: u64) -> bool {
    let details = &certificate.details;
    if !details.revocation_signatures.is_empty() {
        return false;
    }
    let users = details.users.iter().flat_map(|user| &user.signatures);
    let of_primary: Vec<&Signature> = details.direct_signatures.iter().chain(users).collect();
    if !is_valid(&certificate.primary_key, &of_primary, now) {
        return false;
    }
    let subkeys = certificate.public_subkeys.iter().any(|subkey| {
        let bindings: Vec<&Signature> = subkey.signatures.iter().collect();
        signs(&subkey.key, &bindings, signature, text, now)
    });
    subkeys || signs(&certificate.primary_key, &of_primary, signature, text, now)
}

fn signs(
    key: &impl VerifyingKey,
    bindings: &[&Signature],
    signature: &Signature,
    text: &str,
    now: u64,
) -> bool {
    let may_sign = newest(bindings).is_some_and(|binding| binding.key_flags().sign());
    may_sign && is_valid(key, bindings, now) && signature.verify(key, text.as_bytes()).is_ok()
}

/// RFC 9580 §5.2.3.10: "an implementation SHOULD use the most recent self-signature".
fn newest<'a>(signatures: &[&'a Signature]) -> Option<&'a Signature> {
    signatures.iter().max_by_key(|signature| signature.created().map(|time| time.as_secs())).copied()
}

/// Whether the key may be used: its own signatures on it exist, none revokes it, and it has not expired.
fn is_valid(key: &impl KeyDetails, own: &[&Signature], now: u64) -> bool {
    let revokes = |signature: &&Signature| {
        use SignatureType::{CertRevocation, KeyRevocation, SubkeyRevocation};
        matches!(signature.typ(), Some(CertRevocation | KeyRevocation | SubkeyRevocation))
    };
    let Some(newest) = newest(own).filter(|_| !own.iter().any(revokes)) else { return false };
    // RFC 9580 §5.2.3.13: seconds after the key's creation; "if this is not present or has a value of zero, the key
    // never expires".
    let lifetime = newest.key_expiration_time().map_or(0, |lifetime| lifetime.as_secs());
    lifetime == 0 || now < u64::from(key.created_at().as_secs()) + u64::from(lifetime)
}

/// Whether the signature itself is acceptable: over a document, with a safe hash, and in its period.
fn is_acceptable(signature: &Signature, now: u64) -> bool {
    let of_document = matches!(signature.typ(), Some(SignatureType::Text | SignatureType::Binary));
    let strong = matches!(
        signature.hash_alg(),
        Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512)
    );
    let Some(created) = signature.created().map(|time| u64::from(time.as_secs())) else { return false };
    let lifetime = signature.signature_expiration_time().map_or(0, |lifetime| u64::from(lifetime.as_secs()));
    let in_time = created <= now + MAX_AHEAD_SECONDS && (lifetime == 0 || now < created + lifetime);
    of_document && strong && in_time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_debians() {
        let keys = Keys::debian().unwrap();
        let fingerprints: Vec<_> = keys.0.iter().map(|key| format!("{:X}", key.fingerprint())).collect();
        // https://ftp-master.debian.org/keys.html
        assert_eq!(
            fingerprints,
            [
                "B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8",
                "4D64FEC119C2029067D6E791F8D2585B8783D481",
                "04B54C3CDCA79751B16BC6B5225629DF75B188BD",
                "05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0",
                "5E04A1E3223A19A20706E20F9904613D4CCE68C6",
            ]
        );
    }

    #[test]
    fn keys_expire() {
        let keys = Keys::debian().unwrap();
        let valid = |now| {
            let valid = |key: &SignedPublicKey| {
                let own: Vec<_> = key.details.users.iter().flat_map(|user| &user.signatures).collect();
                is_valid(&key.primary_key, &own, now)
            };
            keys.0.iter().map(valid).collect::<Vec<_>>()
        };
        // 2026, 2032, 2036
        assert_eq!(valid(1_780_000_000), [true; 5]);
        assert_eq!(valid(1_970_000_000), [false, false, true, false, true]);
        assert_eq!(valid(2_090_000_000), [false; 5]);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in
            ["", "x", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n"]
        {
            assert!(Keys::parse([text]).is_err(), "{text:?}");
        }
        // One byte of the key is changed, so its own signatures do not match.
        let mut other = DEBIAN[1].to_owned();
        let at = other.find("\n\n").unwrap() + 2 + 30;
        let swapped = if other.as_bytes()[at] == b'A' { "B" } else { "A" };
        other.replace_range(at..=at, swapped);
        assert!(Keys::parse([other.as_str()]).is_err());
    }
}
