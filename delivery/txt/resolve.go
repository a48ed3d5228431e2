package txt

import (
	"context"
	"fmt"

	"github.com/miekg/dns"
)

// Resolve asks the resolvers for the TXT records of a name, as a receiver of mail
// does: one after the other until one answers, aliases followed. Each record has
// its strings joined. No records and no error: there are none. An error may pass,
// but for ErrBadName and ErrAliases.
func (c *Client) Resolve(ctx context.Context, name string) ([]string, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.deadline, fmt.Errorf("%w within %s, the limit of the whole look-up", ErrNoAnswer, c.deadline))
	defer cancel()
	reply, err := c.recurse(ctx, dns.Fqdn(clean), dns.TypeTXT)
	if err != nil {
		return nil, err
	}
	var a Answer
	a.read(reply, dns.Fqdn(clean), ".")
	return a.Records, a.Err
}
