package signer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"postroad/signer/keyring"
)

// SignWith makes the DKIM-Signature fields of a message outside of the queue,
// one for each key, as a Signer would: to try keys out. Expiry is that of the
// Options. The content has CRLF line ends.
func SignWith(ctx context.Context, keys []keyring.Key, content io.Reader, expiry time.Duration) (string, error) {
	if len(keys) == 0 {
		return "", errors.New("sign: no keys given")
	}
	s := &Signer{o: Options{Expiry: expiry}, fields: signedFields()}
	text, made, err := s.signatures(ctx, choice{domain: keys[0].Domain, keys: keys}, content)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	if len(made) != len(keys) {
		return "", errors.New("sign: the message bears signatures of these keys already")
	}
	return text, nil
}
