// Package awskms wraps the key of a workspace's keyset by a key in AWS KMS.
//
// Law, with a test: a wrapped key opens for the workspace that it was wrapped for and no
// other. The workspace is the encryption context, which KMS authenticates and writes
// into its own log.
//
// It knows one key by its ARN. It must not know what is wrapped.
package awskms

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/getmonroe/monroe/host"
)

// Key is a key in AWS KMS.
type Key struct {
	arn    string
	client *kms.Client
}

// New returns the key with an ARN. Credentials come from where AWS's own programs look
// for them: the environment, a profile, the role of the task or the machine. An empty
// endpoint is AWS's; another one is https, or http on this machine. dial connects to
// host:port; nil means the machine's own dialer. Nothing is asked yet.
func New(ctx context.Context, name, endpoint string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*Key, error) {
	a, err := arn.Parse(name)
	if err != nil || a.Service != "kms" || a.Region == "" || !strings.HasPrefix(a.Resource, "key/") {
		return nil, fmt.Errorf("keys: kms %q is not the ARN of a key, such as arn:aws:kms:eu-central-1:111122223333:key/…", name)
	}
	if err := checkEndpoint(endpoint); err != nil {
		return nil, err
	}
	web := awshttp.NewBuildableClient()
	if dial != nil {
		web = web.WithTransportOptions(func(t *http.Transport) { t.DialContext = dial })
	}
	c, err := config.LoadDefaultConfig(ctx, config.WithRegion(a.Region), config.WithHTTPClient(web))
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	client := kms.NewFromConfig(c, func(o *kms.Options) {
		if endpoint != "" {
			o.BaseEndpoint = aws.String(endpoint)
		}
	})
	return &Key{name, client}, nil
}

func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil {
		return errors.New("keys: endpoint is not a URL")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && !(u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())) {
		return fmt.Errorf("keys: endpoint %s: only https is used beyond this machine", u.Redacted())
	}
	return nil
}

// Name is the ARN.
func (k *Key) Name() string { return k.arn }

// bound is what KMS authenticates together with the ciphertext.
func bound(ws host.Workspace) map[string]string {
	return map[string]string{"monroe:purpose": "keyset", "monroe:workspace": string(ws)}
}

// Wrap implements vault.KEK.
func (k *Key) Wrap(ctx context.Context, ws host.Workspace, key []byte) ([]byte, error) {
	out, err := k.client.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.arn, Plaintext: key, EncryptionContext: bound(ws)})
	if err != nil {
		return nil, err
	}
	return out.CiphertextBlob, nil
}

// Unwrap implements vault.KEK. The key is named, so that KMS opens nothing that another
// key wrapped.
func (k *Key) Unwrap(ctx context.Context, ws host.Workspace, wrapped []byte) ([]byte, error) {
	out, err := k.client.Decrypt(ctx, &kms.DecryptInput{KeyId: &k.arn, CiphertextBlob: wrapped, EncryptionContext: bound(ws)})
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}
