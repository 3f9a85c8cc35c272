package canon

import (
	"errors"
	"fmt"
	"net/mail"
	"strings"

	"golang.org/x/net/idna"
)

// ErrAddress is wrapped by every error of Address.
var ErrAddress = errors.New("address")

// Address checks one bare mail address and returns it in lower case, which is
// how it is granted and how it is sent. It refuses everything that two mail
// programs could read differently: display names, comments, groups, quoted local
// parts, source routes, addresses in brackets and non-ASCII characters (a domain
// is written in its xn-- form).
func Address(s string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%w %.120q: %s", ErrAddress, s, why)
	}
	if len(s) > 254 {
		return bad("more than 254 bytes")
	}
	local, domain, ok := strings.Cut(s, "@")
	if !ok || strings.Contains(domain, "@") {
		return bad("write name@example.com, without a display name")
	}
	if local == "" || len(local) > 64 {
		return bad("the part before @ has 1 to 64 characters")
	}
	for part := range strings.SplitSeq(local, ".") {
		if part == "" {
			return bad("the part before @ has an empty piece between dots")
		}
	}
	for i := range len(local) {
		if c := local[i]; !alnum(c) && strings.IndexByte("._+-='&#~", c) < 0 {
			return bad("the part before @ may hold ASCII letters, digits and . _ + - = ' & # ~")
		}
	}
	local, domain = strings.ToLower(local), strings.ToLower(domain)
	if domain != "localhost" && !strings.Contains(domain, ".") {
		return bad("the domain needs a dot, or is localhost")
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad("the domain has an empty or misshapen part")
		}
		for i := range len(label) {
			if c := label[i]; !alnum(c) && c != '-' {
				return bad("the domain may hold ASCII letters, digits, - and . (write others in the xn-- form)")
			}
		}
	}
	if back, err := idna.Lookup.ToASCII(domain); err != nil || back != domain {
		return bad("the domain is not a valid one")
	}
	if last := domain[strings.LastIndexByte(domain, '.')+1:]; last[0] >= '0' && last[0] <= '9' {
		return bad("the domain looks like an IP address")
	}
	clean := local + "@" + domain
	// The standard library's reader has to see the same.
	if a, err := mail.ParseAddress(clean); err != nil || a.Address != clean || a.Name != "" {
		return bad("it is not a plain address")
	}
	return clean, nil
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
