//! A certificate authority of one sandbox's own, made in memory.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use egress_policy::{Name, Policy};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;

use super::TlsError;

/// Most domains that a certificate is constrained to; it would be too large with more.
const MAX_DOMAINS: usize = 128;

/// How long a certificate is valid before it is made, for a guest whose clock is behind, and after.
const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_AFTER: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);
const LEAF_AFTER: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How long a leaf is used: for less time than it is valid.
pub(super) const LEAF_USE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A name that nobody has (RFC 2606), for an authority without any.
const NOBODY: &str = "invalid";

/// An authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// The domains that it can vouch for, if they are not all.
    domains: Option<BTreeSet<String>>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("domains", &self.domains).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority that can vouch for these domains, or for all.
    pub(super) fn new(domains: Option<BTreeSet<String>>) -> Result<Self, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let number = serial()?;
        let mut params = params(number, AUTHORITY_AFTER);
        // Authorities of several sandboxes are told apart by it.
        let id: String = number.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("matchlock sandbox {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = domains.as_ref().map(constraints);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate, domains })
    }

    /// Whether the authority can vouch for a name, or for an address where there is none.
    pub(super) fn covers(&self, name: Option<&Name>) -> bool {
        match (&self.domains, name) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(domains), Some(name)) => {
                let name = name.as_str();
                let above = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
                std::iter::once(name).chain(above).any(|domain| domains.contains(domain))
            }
        }
    }

    /// Whether the authority can vouch for all of these domains.
    pub(super) fn covers_all(&self, domains: Option<&BTreeSet<String>>) -> bool {
        match (&self.domains, domains) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(domains)) => domains.is_subset(own),
        }
    }

    /// Makes the certificate of a key for a name, or for an address where there is none.
    pub(super) fn sign(
        &self,
        key: &KeyPair,
        name: Option<&Name>,
        address: IpAddr,
    ) -> Result<CertificateDer<'static>, TlsError> {
        let mut params = params(serial()?, LEAF_AFTER);
        params.subject_alt_names = vec![match name {
            Some(name) => SanType::DnsName(name.as_str().try_into()?),
            None => SanType::IpAddress(address),
        }];
        params.distinguished_name.push(DnType::OrganizationName, "matchlock");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// The authority's certificate.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate in PEM.
    pub(super) fn pem(&self) -> String {
        let text = STANDARD.encode(&self.certificate);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in text.as_bytes().chunks(64) {
            // The text is ASCII.
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }
}

/// The domains that an authority for this policy is constrained to.
pub(super) fn domains(policy: &Policy) -> Option<BTreeSet<String>> {
    let domains = policy.domains().filter(|domains| domains.len() <= MAX_DOMAINS)?;
    Some(domains.into_iter().map(ToOwned::to_owned).collect())
}

fn constraints(domains: &BTreeSet<String>) -> NameConstraints {
    // Without any permitted name all would be.
    let nobody = domains.is_empty().then_some(NOBODY);
    let names = domains.iter().map(String::as_str).chain(nobody);
    NameConstraints {
        permitted_subtrees: names.map(|name| GeneralSubtree::DnsName(name.to_owned())).collect(),
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    }
}

fn params(number: [u8; 16], after: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + after).into();
    params.serial_number = Some(SerialNumber::from_slice(&number));
    params.distinguished_name = DistinguishedName::new();
    params
}

/// A number that no other certificate has: clients refuse two certificates of an issuer with the same.
fn serial() -> Result<[u8; 16], TlsError> {
    let mut number = [0; 16];
    getrandom::fill(&mut number)?;
    // Positive, and of this length.
    number[0] = number[0] & 0x3f | 0x40;
    Ok(number)
}
