//! The policy on images: `containers-policy.json(5)`, with signatures as cosign makes them.
//!
//! The requirements of the narrowest scope that contains a name apply to it: image, repository, each namespace above
//! it, registry, `*.domain`, every registry, everything. All of them must be met, and a requirement that is not
//! understood is not met: signatures of other kinds (`signedBy`, Fulcio) refuse the image.
//!
//! A signature (`sigstoreSigned`) is a blob that names the manifest's digest, and the ECDSA P-256 signature of that
//! blob in an annotation; both are in the repository under the tag `sha256-<digest>.sig`. For an index the index
//! itself is signed, which has every digest below it. Not here: requests to the registry.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use images::Digest;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;

use crate::trust::{bounded, is_there};
use crate::{Error, Name};

/// Most signatures of one image that are checked.
pub(crate) const MAX_SIGNATURES: usize = 16;

/// Longest list of signatures.
pub(crate) const MAX_LIST_BYTES: u64 = 1 << 20;

/// Longest blob of a signature.
pub(crate) const MAX_PAYLOAD_BYTES: u64 = 64 << 10;

/// cosign's specification of signatures: the media type of the signed payload, and the annotation with its signature.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const TYPE: &str = "cosign container image signature";

/// RFC 5480 §2: a `SubjectPublicKeyInfo` of the algorithm id-ecPublicKey on the curve secp256r1 begins with this; an
/// uncompressed point follows.
const P256_HEADER: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Value>,
    #[serde(default)]
    transports: HashMap<String, HashMap<String, Vec<Value>>>,
}

/// One condition on an image.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    #[serde(rename_all = "camelCase")]
    SigstoreSigned {
        key_path: Option<PathBuf>,
        key_data: Option<String>,
        #[serde(default)]
        signed_identity: Identity,
    },
}

/// The names that a signature may be for.
#[derive(Debug, Default, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Identity {
    /// The same name; for a name by digest, any name in the same repository.
    #[default]
    MatchRepoDigestOrExact,
    MatchExact,
    MatchRepository,
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
}

/// The demands of a host on one image.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    path: PathBuf,
    keys: Vec<(Vec<u8>, Identity)>,
}

/// A signature in a repository.
pub(crate) struct Signature {
    pub(crate) payload: Vec<u8>,
    pub(crate) signature: String,
}

/// The policy's file: the user's own, or the system's.
pub(crate) fn file(home: &Path) -> Option<PathBuf> {
    let mut files =
        [home.join(".config/containers/policy.json"), PathBuf::from("/etc/containers/policy.json")];
    files.iter_mut().find(|path| is_there(path)).map(std::mem::take)
}

/// The demands on `name`; an error if it is refused in any case.
pub(crate) fn demands(file: Option<&Path>, name: &Name) -> Result<Demands, Error> {
    match file {
        None => Ok(Demands::default()),
        Some(path) => demands_of(&bounded(path)?, path, name),
    }
}

/// The demands of the policy that was read from `path`.
pub(crate) fn demands_of(policy: &[u8], path: &Path, name: &Name) -> Result<Demands, Error> {
    let wrong = |why: String| Error::Host(format!("{}: {why}", path.display()));
    let mut file: File = serde_json::from_slice(policy).map_err(|error| wrong(error.to_string()))?;
    let mut docker = file.transports.remove("docker").unwrap_or_default();
    let chosen = scopes(name).into_iter().find_map(|scope| docker.remove_entry(&scope));
    let (scope, requirements) = chosen.unwrap_or(("default".to_owned(), file.default));
    if requirements.is_empty() {
        return Err(wrong(format!("{scope}: no requirement at all")));
    }
    let mut demands = Demands { path: path.to_owned(), keys: Vec::new() };
    for requirement in requirements {
        let kind = requirement.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let requirement = serde_json::from_value(requirement).map_err(|error| {
            wrong(format!("{scope}: requirement {kind:?}, so {name} is refused: {error}"))
        })?;
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::Reject {} => return Err(wrong(format!("{scope}: {name} is rejected"))),
            Requirement::SigstoreSigned { key_path, key_data, signed_identity } => {
                let pem = match (key_path, key_data) {
                    (Some(path), None) => bounded(&path)?,
                    (None, Some(data)) => {
                        STANDARD.decode(data).map_err(|error| wrong(format!("{scope}: keyData: {error}")))?
                    }
                    _ => return Err(wrong(format!("{scope}: one of keyPath and keyData is needed"))),
                };
                let key = point(&pem).map_err(|why| wrong(format!("{scope}: its key: {why}")))?;
                demands.keys.push((key, signed_identity));
            }
        }
    }
    Ok(demands)
}

/// The names of the scopes that `name` is in, the narrowest first.
fn scopes(name: &Name) -> Vec<String> {
    let whole = name.to_string();
    let repository = format!("{}/{}", name.registry(), name.repository());
    let mut scopes = vec![whole, repository.clone()];
    let mut rest = repository.as_str();
    while let Some((above, _)) = rest.rsplit_once('/') {
        scopes.push(above.to_owned());
        rest = above;
    }
    while let Some((_, domain)) = rest.split_once('.') {
        scopes.push(format!("*.{domain}"));
        rest = domain;
    }
    scopes.push(String::new());
    scopes
}

/// A P-256 public key's point, from its PEM.
fn point(pem: &[u8]) -> Result<Vec<u8>, String> {
    let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|error| format!("{error:?}"))?;
    let point = key.strip_prefix(&P256_HEADER).filter(|point| point.len() == 65);
    point.map(<[u8]>::to_vec).ok_or_else(|| "only ECDSA P-256 keys are understood".to_owned())
}

/// The tag of a manifest's signatures.
pub(crate) fn tag(manifest: &Digest) -> String {
    format!("sha256-{}.sig", manifest.hex())
}

/// The signatures that such a tag's manifest lists: each blob's digest, and the signature of that blob.
pub(crate) fn listed(manifest: &[u8]) -> Vec<(Digest, String)> {
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Layer {
        #[serde(rename = "mediaType", default)]
        media_type: String,
        digest: String,
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let Ok(Manifest { layers }) = serde_json::from_slice(manifest) else { return Vec::new() };
    let signatures =
        layers.into_iter().filter(|layer| layer.media_type == PAYLOAD).filter_map(|mut layer| {
            Some((Digest::parse(&layer.digest).ok()?, layer.annotations.remove(ANNOTATION)?))
        });
    signatures.take(MAX_SIGNATURES).collect()
}

impl Demands {
    /// Whether signatures are demanded.
    pub(crate) fn any(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Checks that every demand is met by one of these signatures.
    pub(crate) fn met(&self, name: &Name, manifest: &Digest, signatures: &[Signature]) -> Result<(), Error> {
        let unmet = self.keys.iter().find(|(key, identity)| {
            let good = |signature: &Signature| {
                let bytes = STANDARD.decode(&signature.signature).unwrap_or_default();
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key);
                key.verify(&signature.payload, &bytes).is_ok()
                    && says(&signature.payload, name, manifest, identity)
            };
            !signatures.iter().any(good)
        });
        let Some((_, identity)) = unmet else { return Ok(()) };
        let found = signatures.len();
        let wanted = match identity {
            Identity::ExactReference { docker_reference: name }
            | Identity::ExactRepository { docker_repository: name } => name.clone(),
            _ => name.to_string(),
        };
        let path = self.path.display();
        Err(Error::Unsigned(format!(
            "{path} demands a signature for {wanted}; of {found} there, none is good"
        )))
    }
}

/// Whether a signed payload is about this manifest under this name.
pub(crate) fn says(payload: &[u8], name: &Name, manifest: &Digest, identity: &Identity) -> bool {
    let Ok(payload) = serde_json::from_slice::<Value>(payload) else { return false };
    let text = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str);
    let about = text("/critical/type") == Some(TYPE)
        && text("/critical/image/docker-manifest-digest") == Some(manifest.as_str());
    let signed = text("/critical/identity/docker-reference").and_then(|signed| Name::parse(signed).ok());
    let Some(signed) = signed.filter(|_| about) else { return false };
    let repository = |a: &Name, b: &Name| a.registry() == b.registry() && a.repository() == b.repository();
    let exact = |a: &Name, b: &Name| repository(a, b) && a.version() == b.version();
    match identity {
        Identity::MatchRepoDigestOrExact if name.digest().is_some() => repository(&signed, name),
        Identity::MatchRepoDigestOrExact | Identity::MatchExact => exact(&signed, name),
        Identity::MatchRepository => repository(&signed, name),
        Identity::ExactReference { docker_reference } => {
            Name::parse(docker_reference).is_ok_and(|wanted| exact(&signed, &wanted))
        }
        Identity::ExactRepository { docker_repository } => {
            Name::parse(docker_repository).is_ok_and(|wanted| repository(&signed, &wanted))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demanded(policy: &str, name: &str) -> Result<usize, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), policy).unwrap();
        let demands = demands(Some(file.path()), &Name::parse(name).unwrap());
        let demands = demands.map_err(|error| error.to_string().split_once(": ").unwrap().1.to_owned())?;
        Ok(demands.keys.len())
    }

    #[test]
    fn the_narrowest_scope_counts() {
        let policy = |default: &str| {
            format!(
                r#"{{"default": [{{"type": "{default}"}}], "transports": {{
                    "docker-daemon": {{"": [{{"type": "insecureAcceptAnything"}}]}},
                    "docker": {{
                        "docker.io/library": [{{"type": "reject"}}],
                        "docker.io/library/alpine": [{{"type": "insecureAcceptAnything"}}],
                        "docker.io/library/alpine:3": [{{"type": "reject"}}],
                        "*.example.org": [{{"type": "insecureAcceptAnything"}}],
                        "old.example": [{{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}}],
                        "empty.example": []
                    }}}}}}"#
            )
        };
        let reject = policy("reject");
        for (name, wanted) in [
            ("alpine", Ok(0)),
            ("alpine:3", Err("docker.io/library/alpine:3: docker.io/library/alpine:3 is rejected")),
            ("debian", Err("docker.io/library: docker.io/library/debian:latest is rejected")),
            ("a.b.example.org:5000/x", Err("default: a.b.example.org:5000/x:latest is rejected")),
            ("a.b.example.org/x", Ok(0)),
            ("example.org/x", Err("default: example.org/x:latest is rejected")),
            ("empty.example/x", Err("empty.example: no requirement at all")),
        ] {
            assert_eq!(demanded(&reject, name), wanted.map_err(str::to_owned), "{name}");
        }
        assert_eq!(demanded(&policy("insecureAcceptAnything"), "example.org/x"), Ok(0));
        let error = demanded(&reject, "old.example/x").unwrap_err();
        assert!(error.contains("signedBy") && error.contains("is refused"), "{error}");
        for policy in
            ["", "{}", r#"{"default": [{"type": "reject", "more": 1}]}"#, r#"{"default": [], "x": 1}"#]
        {
            assert!(demanded(policy, "x").is_err(), "{policy}");
        }
        assert!(!demands(None, &Name::parse("x").unwrap()).unwrap().any());
    }

    #[test]
    fn what_is_no_list_of_signatures() {
        let wrong_type = r#"{"layers": [{"mediaType": "a/b", "digest": "sha256:0"}]}"#;
        for manifest in ["", "{}", r#"{"layers": [{}]}"#, wrong_type] {
            assert!(listed(manifest.as_bytes()).is_empty(), "{manifest}");
        }
    }

    #[test]
    fn what_is_no_key() {
        for pem in ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(point(pem.as_bytes()).is_err(), "{pem}");
        }
    }
}
