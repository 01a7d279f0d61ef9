//! jsonwebtoken's cryptography on `ring`: asymmetric algorithms only. There is no HMAC here, so a public key can never be
//! taken for a shared secret.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, Ed25519KeyPair, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use signature::{Error, Signer, Verifier};

static PROVIDER: CryptoProvider =
    CryptoProvider { signer_factory: signer, verifier_factory: verifier, key_utils: KeyUtils::new_unimplemented() };

/// Makes it the process's provider. Nothing else in this program may bring one.
pub fn install() {
    let _already_installed = PROVIDER.install_default();
}

struct Ed25519Signer(Ed25519KeyPair);

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    if *algorithm != Algorithm::EdDSA || key.family() != AlgorithmFamily::Ed {
        return Err(ErrorKind::UnsupportedAlgorithm.into());
    }
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.as_bytes()).map_err(|_| ErrorKind::InvalidEddsaKey)?;
    Ok(Box::new(Ed25519Signer(pair)))
}

impl Signer<Vec<u8>> for Ed25519Signer {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

impl JwtSigner for Ed25519Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

enum Key {
    /// A point.
    Curve(&'static dyn VerificationAlgorithm, Vec<u8>),
    Rsa(&'static RsaParameters, RsaPublicKeyComponents<Vec<u8>>),
}

struct RingVerifier(Algorithm, Key);

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if algorithm.family() != key.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let curve = |with: &'static dyn VerificationAlgorithm| -> Result<Key> {
        Ok(Key::Curve(with, key.try_get_as_bytes()?.to_vec()))
    };
    let rsa = |with| -> Result<Key> {
        match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                Ok(Key::Rsa(with, RsaPublicKeyComponents { n: n.clone(), e: e.clone() }))
            }
            DecodingKeyKind::SecretOrDer(_) => Err(ErrorKind::InvalidKeyFormat.into()),
        }
    };
    let key = match algorithm {
        Algorithm::EdDSA => curve(&ED25519),
        Algorithm::ES256 => curve(&ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => curve(&ECDSA_P384_SHA384_FIXED),
        Algorithm::RS256 => rsa(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::PS256 => rsa(&RSA_PSS_2048_8192_SHA256),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(RingVerifier(*algorithm, key?)))
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let verified = match &self.1 {
            Key::Curve(with, point) => UnparsedPublicKey::new(*with, point).verify(message, signature),
            Key::Rsa(with, key) => key.verify(with, message, signature),
        };
        verified.map_err(|_| Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}
