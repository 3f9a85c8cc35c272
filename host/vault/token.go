package vault

import (
	"crypto/sha256"
	"encoding/base64"

	"github.com/tink-crypto/tink-go/v2/subtle/random"
)

// HashToken is what is stored of a token. A plain hash is enough: the token has
// 256 random bits, so there is nothing to guess.
func HashToken(text string) []byte {
	h := sha256.Sum256([]byte("monroe/token|" + text))
	return h[:]
}

// NewToken returns a fresh bearer token of 256 bits and what is stored of it.
func NewToken() (text string, stored []byte) {
	text = "mrt_" + base64.RawURLEncoding.EncodeToString(random.GetRandomBytes(32))
	return text, HashToken(text)
}
