package dkim

import (
	"context"
	"fmt"
	"strings"
	"time"

	"postroad/cmd/internal/config"
	"postroad/signer"
	"postroad/signer/keyring"
)

// TestSign signs a sample with keys, as the signer does, and verifies it as receivers do.
func TestSign(ctx context.Context, c *config.Config, dns Resolver, keys []keyring.Key) ([]Signature, error) {
	if len(keys) == 0 {
		return nil, keyring.ErrNoKey
	}
	domain := keys[0].Domain
	sample := fmt.Sprintf("From: postmaster@%s\r\nTo: postmaster@%s\r\nSubject: test of DKIM keys\r\nDate: %s\r\nMessage-ID: <test.%d@%s>\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\nNobody sends this message.\r\n",
		domain, domain, time.Now().Format(time.RFC1123Z), time.Now().UnixNano(), domain)
	fields, err := signer.SignWith(ctx, keys, strings.NewReader(sample), c.Signer.Expiry)
	if err != nil {
		return nil, err
	}
	return Verify(ctx, dns, strings.NewReader(fields+sample))
}
