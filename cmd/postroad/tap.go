package main

import (
	"errors"
	"fmt"
	"time"

	"postroad/queue"
)

type tapCmd struct {
	Site   string        `placeholder:"SITE" help:"Dialogues with the hosts of this site, as status and trace name it."`
	Domain string        `placeholder:"DOMAIN" help:"Dialogues for recipients in this domain."`
	ID     string        `name:"id" placeholder:"ID" help:"Dialogues for this message."`
	For    time.Duration `placeholder:"TIME" default:"5m" help:"How long to listen, an hour at most. Default: ${default}."`
}

// Run prints what is said as it is said.
func (t tapCmd) Run(a *app) error {
	wish := queue.TapWish{Site: t.Site, Domain: t.Domain, ID: queue.MessageID(t.ID)}
	switch {
	case wish == (queue.TapWish{}):
		return usage("say whose dialogues: --site, --domain or --id")
	case t.For <= 0 || t.For > queue.MaxTap:
		return usage("--for is above 0, an hour at most")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	n := 0
	for line, err := range c.Tap(a.ctx, wish, t.For) {
		if err != nil {
			if a.ctx.Err() != nil { // interrupted: that is how one stops listening
				break
			}
			return err
		}
		n++
		if a.flags.JSON {
			if err := a.print(line); err != nil {
				return err
			}
			continue
		}
		if line.Missed > 0 {
			a.say("… %d lines were too many and are missing\n", line.Missed)
		}
		a.say("%s\n", tapText(line))
	}
	if n == 0 {
		return errors.New("nothing was heard: no dialogue with such a host, domain or message in that time")
	}
	return nil
}

// tapText is one line of a dialogue for people. Dialogues of several messages mix, so each line says whose it is.
func tapText(l queue.TapLine) string {
	id := string(l.ID)
	if l.Part > 0 {
		id = fmt.Sprintf("%s/%d", id, l.Part+1)
	}
	return fmt.Sprintf("%s %s %s %s", l.At.Local().Format("15:04:05.000"), id, l.From, clean(l.Text, 1000))
}
