package vault

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
)

// MinSecret is the shortest credential, in bytes: a shorter one could not be
// scrubbed from replies without destroying them.
const MinSecret = 8

// ErrCredential is wrapped when a credential may not be used or does not exist.
var ErrCredential = errors.New("credential")

// Credential is one that the operator provides by configuration.
type Credential struct {
	// Connection is its id. Another account is another connection.
	Connection string
	// Subject is whose account it is, as the other side names it.
	Subject string
	// Origins are the only places that it may be sent to, exactly: scheme, host and
	// the port if it is not the scheme's own, such as https://openrouter.ai or
	// smtp://mail.example.com:587.
	Origins []string
	// Secret is the value.
	Secret Secret
}

// Static are credentials that do not change while the process lives. It is safe
// for concurrent use.
type Static struct{ m map[string]Credential }

// NewStatic checks and holds the credentials.
func NewStatic(all ...Credential) (*Static, error) {
	s := &Static{m: map[string]Credential{}}
	for _, c := range all {
		if c.Connection == "" || c.Subject == "" {
			return nil, fmt.Errorf("%w: it needs a connection id and a subject", ErrCredential)
		}
		if _, ok := s.m[c.Connection]; ok {
			return nil, fmt.Errorf("%w: the connection %q occurs twice", ErrCredential, c.Connection)
		}
		value := c.Secret.Reveal()
		if len(value) < MinSecret {
			return nil, fmt.Errorf("%w of %q: at least %d bytes", ErrCredential, c.Connection, MinSecret)
		}
		for i := range len(value) {
			if b := value[i]; b < ' ' || b == 0x7f {
				return nil, fmt.Errorf("%w of %q: it holds a control character", ErrCredential, c.Connection)
			}
		}
		if len(c.Origins) == 0 {
			return nil, fmt.Errorf("%w of %q: name the origins that it may be sent to", ErrCredential, c.Connection)
		}
		for _, o := range c.Origins {
			u, err := url.Parse(o)
			if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != o {
				return nil, fmt.Errorf("%w of %q: origin %q: write scheme://host or scheme://host:port", ErrCredential, c.Connection, o)
			}
		}
		c.Origins = slices.Clone(c.Origins)
		s.m[c.Connection] = c
	}
	return s, nil
}

// Fill returns the secret of a connection for one origin, or an error that wraps
// ErrCredential and says nothing of the value.
func (s *Static) Fill(_ context.Context, connection, origin string) (Secret, error) {
	c, ok := s.m[connection]
	if !ok {
		return Secret{}, fmt.Errorf("%w: there is no connection %q", ErrCredential, connection)
	}
	if !slices.Contains(c.Origins, origin) {
		return Secret{}, fmt.Errorf("%w of %q: it may not be sent to %s", ErrCredential, connection, origin)
	}
	return c.Secret, nil
}

// Subject says whose account a connection is.
func (s *Static) Subject(connection string) (string, bool) {
	c, ok := s.m[connection]
	return c.Subject, ok
}
