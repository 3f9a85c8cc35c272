package capture

import (
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
)

// leaks reports whether s holds the secret as it is or in an encoding that an SDK
// could have applied: percent, JSON escapes, hexadecimal, base64 at any offset,
// each also in another letter case where that keeps the meaning.
func leaks(s, secret string) bool {
	if holds(s, secret) {
		return true
	}
	for range 4 { // encodings may be nested
		next := unescape(s)
		if next == s {
			return false
		}
		if s = next; holds(s, secret) {
			return true
		}
	}
	return false
}

func holds(s, secret string) bool {
	low := strings.ToLower(s)
	if strings.Contains(low, strings.ToLower(secret)) || strings.Contains(low, hex.EncodeToString([]byte(secret))) {
		return true
	}
	// Base64 knows three alignments. The characters that depend on what stands
	// beside the secret are cut off.
	for shift := range 3 {
		padded := strings.Repeat("\x00", shift) + secret
		enc := base64.RawStdEncoding.EncodeToString([]byte(padded))
		core := enc[(shift*8+5)/6 : len(padded)*8/6]
		if strings.Contains(s, core) || strings.Contains(s, strings.NewReplacer("+", "-", "/", "_").Replace(core)) {
			return true
		}
	}
	return false
}

// unescape undoes one layer of %XX and \uXXXX.
func unescape(s string) string {
	if !strings.ContainsAny(s, `%\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '%' && i+3 <= len(s):
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		case s[i] == '\\' && i+6 <= len(s) && s[i+1] == 'u':
			if n, err := strconv.ParseUint(s[i+2:i+6], 16, 16); err == nil {
				b.WriteRune(rune(n))
				i += 5
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
